"""What people look at in a browser: a study's report and its features."""

from delta_transcoders.pages.inline import inline_feature

__all__ = ["inline_feature"]
