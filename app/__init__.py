"""A page to try a fine-tuned model, by Gradio."""

import os

# Before gradio is imported anywhere: it would tell its makers that it was started, and look for a
# newer version of itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# It looks whether its own page is there; no proxy could reach that.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1,localhost"]))
