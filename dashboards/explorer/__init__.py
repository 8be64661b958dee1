"""What `plait ui` opens: a root in the browser, read only. `server.py` is the door, `static/` what a browser gets."""
