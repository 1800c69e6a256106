"""Wordings far from those of training: indirect, in a story, in several sentences. For `tool_ood` alone.

Fields are those of `requests`.
"""

UNSEEN_CALCULATIONS = {
    "{a}+{b}": (
        "A bakery sold {a} rolls in the morning and {b} in the afternoon. How many did it sell that day?",
        "I saved {a} dollars last year. This year it was {b} dollars more. What did I save this year?",
        "The first stage of the race is {a} miles, the second {b}. I wonder how long both are together.",
        "Here's our stock: we had {a} boxes, and a truck brought {b} more this morning. How many now?",
        "Two teams scored {a} and {b} points. The commentator wants the combined score.",
    ),
    "{a}*{s}": (
        "There are {a} chairs in each of {s} halls. How many cushions do I order if each chair gets one?",
        "The bus holds {a} people and the company runs {s} of them. I'd like the total number of seats.",
        "If one ticket costs {a} cents, then what would I pay for {s} of them?",
    ),
    "{sum}-{b}": (
        "My daughter had {sum} stickers and gave {b} of them away. She asks how many are left.",
        "Our library owned {sum} books before the flood, which ruined {b}. How many survived?",
        "A farmer with {sum} sheep sells {b}. How many does he keep?",
        "My phone showed {sum} steps, but {b} of those were from yesterday. What's the real figure?",
        "Tonight {sum} people came to the show. Last night it was {b} fewer. How many was that?",
    ),
    "{product}/{s}": (
        "We are {s} friends and the bill was {product} euros. What does each of us owe?",
        "Someone put {product} marbles into {s} bags, equally many in each. What's in one bag?",
        "It takes {product} bricks to build {s} equal walls. What does a single wall take?",
        "I fill {s} glasses evenly from a jug of {product} milliliters. What lands in each?",
    ),
    "{s}*{b}": ("A theater has {s} rows with {b} seats each. How large an audience fits in?",),
    "{b}*{s}": (
        "I read {b} pages a day. After {s} days, how far into the book am I?",
        "Grandma needs {b} grams of flour a cake, and she bakes {s} cakes. That makes how many grams?",
    ),
}
"""By the argument of their calls."""

UNSEEN_CONVERSIONS = {
    "distance": (
        "The sign says the next town is {x} away. I only think in {to}, so how far is that?",
        "A friend abroad claims to have walked {x}. Put that in {to} so that I can picture it.",
    ),
    "size": (
        "My new shelf is {x} wide, but the tape measure here only shows {to}. What will it read?",
        "The plan gives the door's height as {x}. Our builder asks for the figure in {to}.",
        "I was told to plant the bulbs {x} deep. My ruler is in {to}.",
    ),
    "mass": (
        "The airline lets me take {x}, and my scale shows {to}. What is the most it may show?",
        "Grandpa's cookbook asks for {x} of butter, and nobody in this kitchen knows anything but {to}.",
        "Our puppy weighs {x} according to the vet. I'd rather have that in {to} for my diary.",
        "The parcel is {x}. The form only has a field for {to}, so what do I enter?",
    ),
    "volume": (
        "The recipe calls for {x} of milk. All I have is a jug marked in {to}. Up to where do I fill it?",
        "Her fish tank holds {x}. The plant food is dosed by {to} only. How big is the tank in those?",
        "My car took {x} of fuel on the trip, but my log is kept in {to}.",
        "They sell paint here in tins of {x}. I know what I need in {to}. How big is one tin, then?",
    ),
    "temperature": (
        "It was {x} when we landed. My sister would only understand {to}. What do I tell her?",
        "The oven has to be at {x}, but its dial is in {to}. Where do I turn it?",
        "The thermometer on the wall reads {x}. What would one in {to} read beside it?",
        "Our lab notes have the sample at {x}, and the report wants {to}.",
    ),
    "speed": (
        "We drove at {x} on the motorway, and my cousin asked what that would be in {to}.",
        "The wind got up to {x} last night. The sailors here speak of {to}, so what would they say?",
        "A cheetah was timed at {x}. Let me have it in {to} for the poster.",
    ),
}
"""By quantity (`requests.QUANTITIES`)."""

UNSEEN_DATES = {
    "{day} + {n} days": (
        "Our lease began on {day} and runs for {n} days. When does it end?",
        "The warranty lasts {n} days and I bought the kettle on {day}. Until when am I covered?",
        "The invoice is dated {day}. We have {n} days to pay, so by when must it be paid?",
        "The ship left port on {day} and came back after {n} days at sea. When was that?",
        "He planted the tomatoes on {day}, and they need {n} days. When can we pick them?",
        "Remind me: the visa was issued on {day} and is good for {n} days. When does it run out?",
        "A library book borrowed on {day} has to be back after {n} days. What do I stamp on the card?",
    ),
    "{later} - {day}": (
        "The parcel was sent on {day} and came on {later}. For how many days was it on its way?",
        "I quit smoking on {day}. Today is {later}. How many days have I made it?",
        "My exam is on {later} and I start to study on {day}. How many days do I have?",
        "Work on the bridge began on {day} and ended on {later}. The paper asks how many days it took.",
        "We met on {day} and got married on {later}. My wife asks how many days that took me.",
        "The museum closed on {day} and opens again on {later}. That's how many days without a visit?",
        "The satellite went up on {day} and burnt up on {later}. Its life in days goes on the plaque.",
        "The last frost was on {day}, the next one on {later}. How many days were free of it?",
        "I lent him my bike on {day} and got it back on {later}. How many days do I charge him for?",
    ),
    "{day} - {n} days": (
        "The baby was due on {day} but came {n} days early. When is its birthday?",
        "The concert is on {day}. Tickets went on sale {n} days before. Which date was that?",
        "To be ready on {day}, the cheese has to be started {n} days earlier. When do I start?",
        "The vote was on {day}. The campaign had opened {n} days earlier. On which date?",
    ),
}
"""By the argument of their calls."""
