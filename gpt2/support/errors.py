"""What every file may raise, so that none need import another for it."""


class UserError(Exception):
    """Something only the user can mend. The message is one line: which file, row or flag, what is
    wrong with it, and what would be right. `run_script` prints it and exits with status 2."""
