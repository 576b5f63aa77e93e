"""Made-up support tickets to practise on: five queues, and a summary of each ticket.

    python classification/make_tickets.py tickets.csv

600 rows with the columns text, queue and summary. Queues are lopsided, wordings vary, some problems
could go to either of two queues, one ticket in 25 lies in a wrong one, and there are typing errors,
copies and empty texts. The same seed makes the same file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import random
from dataclasses import dataclass

import polars as pl

from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script

SHARES = {"technical": 0.36, "delivery": 0.26, "billing": 0.2, "account": 0.12, "returns": 0.06}

# For each queue its problems: as customers put them, with | between, and as a clerk sums them up.
PROBLEMS = {
    "technical": [
        ("The app crashes as soon as I open it|Every time I start the app it closes again after a "
         "second|Your app will not stay open on my phone", "app crashes at start"),
        ("My {thing} does not connect to the wifi any more|The {thing} loses its connection every "
         "few minutes|I cannot get the {thing} online", "{thing} does not connect"),
        ("The {thing} does not charge|The battery of my {thing} is empty after an hour|My {thing} "
         "stays dark however long I charge it", "{thing} does not charge"),
        ("After the last update the {thing} is terribly slow|Since the update my {thing} freezes|"
         "The new version has broken my {thing}", "{thing} fails since the update"),
        ("The screen of the {thing} flickers|My {thing} shows nothing but stripes|There are lines "
         "across the display of my {thing}", "display of {thing} is faulty"),
        ("The page shows error 500 when I pay|I get an error message at the checkout|The payment "
         "page stays white", "checkout shows an error"),
    ],
    "delivery": [
        ("My order of a {thing} has not arrived|I am still waiting for my {thing}|The {thing} "
         "should have been here last week", "{thing} has not arrived"),
        ("The parcel was left in the rain|The courier threw my parcel over the fence|My parcel "
         "stood in front of the house all day", "parcel was left outside"),
        ("The tracking has not changed for days|The tracking number does not work|It says "
         "delivered, but nothing came", "tracking is wrong"),
        ("I need to change the delivery address|I am moving, please send the {thing} to my new "
         "address|The {thing} is on its way to my old flat", "wants another delivery address"),
        ("Everything was in the box but the {thing}|The {thing} was missing from the parcel|There "
         "was no {thing} in the box", "{thing} is missing from the parcel"),
    ],
    "billing": [
        ("I was charged twice for the {thing}|You took the money for my {thing} two times|There "
         "are two payments for one {thing} on my card", "charged twice for {thing}"),
        ("The invoice has the wrong address|I need the invoice in the name of my company|Please "
         "correct my invoice", "invoice must be corrected"),
        ("My discount code was not applied|The voucher did nothing|I paid the full price although "
         "I had a coupon", "discount was not applied"),
        ("You still charge me for a subscription that I have ended|I cancelled in spring and the "
         "monthly fee goes on|Why do I still pay for the subscription", "charged after cancelling"),
        ("The amount on my card is not the one in the shop|The price on the bill is higher than I "
         "agreed to|My bill is wrong by {money} euros", "wrong amount charged"),
    ],
    "account": [
        ("I have forgotten my password and the mail to reset it does not come|The link for a new "
         "password has expired|I cannot log in any more", "cannot log in"),
        ("My account is locked|It says that my account has been blocked|After three attempts I am "
         "locked out", "account is locked"),
        ("Please delete my account and all my data|I want you to remove everything you know about "
         "me|Close my account", "wants the account deleted"),
        ("I have a new email address|How do I change my phone number in the profile|My name is "
         "spelt wrong in my profile", "wants the profile changed"),
    ],
    "returns": [
        ("I would like to send the {thing} back|The {thing} is too big and I want to return it|I "
         "do not like the {thing}, how can I return it", "wants to return {thing}"),
        ("I returned the {thing} three weeks ago and have no money yet|Where is the refund for "
         "the {thing}|You have my {thing} back but I have no refund",
         "waits for refund of {thing}"),
        ("I need a label to send the {thing} back|The return label cannot be printed|There was no "
         "return form in the box", "needs a return label"),
    ],
}  # fmt: skip

# Problems that one clerk puts into the first queue and another into the second.
BETWEEN = [
    ("delivery", "returns", "The {thing} arrived broken|My {thing} came with a crack|The box was "
     "crushed and the {thing} is damaged", "{thing} arrived broken"),
    ("technical", "account", "The app does not accept my password|The login page does nothing when "
     "I press the button|I am logged out all the time", "login fails"),
    ("billing", "returns", "I want my money back for the {thing}|When do I get my {money} euros "
     "for the {thing} back|Please refund the {thing}", "wants a refund for {thing}"),
]  # fmt: skip

THINGS = ["headset", "tablet", "lamp", "coffee machine", "keyboard", "camera", "speaker",
          "vacuum cleaner", "watch", "heater", "router", "toaster"]  # fmt: skip
GREETINGS = ["", "", "Hello!", "Hi there!", "Good morning.", "Dear team!",
             "This is the second time I write."]  # fmt: skip
DETAILS = [
    "My order number is {number}.", "I bought it on the {day}th.", "I paid {money} euros for it.",
    "I have been a customer for years.", "It is a present for my sister.",
    "I have tried everything on your help page.", "The chat told me to write here.",
    "Nobody answers the phone.", "A friend has the same problem.", "I only noticed it today.",
    "I have read the invoice twice.", "The courier was friendly, by the way.",
]  # fmt: skip
WISHES = [
    "Please help.", "What can I do?", "Please answer soon.", "I need this before Friday.",
    "Can you call me back?", "I am rather annoyed.", "Kindly look into it.",
    "Thanks in advance.", "Otherwise I was always happy with you.",
]  # fmt: skip


@dataclass
class TicketSettings:
    """Tickets"""

    rows: int = flag(600, "tickets", at_least=50)
    seed: int = flag(1, "another seed makes other tickets", at_least=0)


def make_ticket(draw: random.Random) -> dict[str, str]:
    """One ticket: text, queue, summary."""
    queue = draw.choices(list(SHARES), list(SHARES.values()))[0]
    wordings, summary = draw.choice(PROBLEMS[queue])
    if draw.random() < 0.12:
        *queues, wordings, summary = draw.choice(BETWEEN)
        queue = draw.choices(queues, (0.65, 0.35))[0]
    if draw.random() < 0.04:  # somebody clicked on the wrong one
        queue = draw.choice(list(SHARES))
    values = {"thing": draw.choice(THINGS), "number": draw.randrange(10_000, 99_999),
              "day": draw.randrange(4, 20), "money": draw.randrange(9, 190)}  # fmt: skip
    problem = draw.choice(wordings.split("|")) + draw.choice("...!")
    details = draw.sample(DETAILS, draw.randrange(1, 5))
    said = [draw.choice(GREETINGS), problem, *details, draw.choice(WISHES)]
    text = " ".join(said).strip().format(**values)
    if draw.random() < 0.06:
        text = text.upper()
    elif draw.random() < 0.15:
        text = text.lower()
    if draw.random() < 0.3:
        text = _typing_error(text, draw)
    summary = summary.format(**values)
    return {"text": text, "queue": queue, "summary": summary[0].upper() + summary[1:] + "."}


def _typing_error(text: str, draw: random.Random) -> str:
    """Two neighbouring characters change places."""
    place = draw.randrange(len(text) - 1)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def make_tickets(rows: int, seed: int) -> pl.DataFrame:
    """`rows` tickets, among them copies (one in 40) and empty texts (one in 150)."""
    draw = random.Random(seed)
    tickets = [make_ticket(draw) for _ in range(rows)]
    for _ in range(rows // 40):
        tickets[draw.randrange(rows)] = draw.choice(tickets)
    for _ in range(rows // 150):
        row = draw.randrange(rows)
        tickets[row] = tickets[row] | {"text": ""}
    return pl.DataFrame(tickets)


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="a new .csv file")

    settings, arguments = parse_flags(
        [TicketSettings], "Made-up support tickets to practise on.", add_arguments=add_arguments
    )
    if arguments.file.exists():
        raise UserError(f"{arguments.file}: is there already; name a new file")
    make_tickets(settings.rows, settings.seed).write_csv(arguments.file)
    print(f"{arguments.file}: {settings.rows:,} tickets")


if __name__ == "__main__":
    run_script(main)
