"""Three tools, called from chats: a calculator, conversions between units, and dates."""
