"""What every page has in common: colours and controls, the elements it is built of, and how tokens look.

The report inlines these files, the playground is served them; none needs a file beside the ones here.
"""
