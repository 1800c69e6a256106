"""Chats that look like requests for a tool and are none, as frames and what fills them.

Numbers without a question; calculating, converting and dates in other senses; requests with nothing to
compute; questions about units, calendars and tools; and tasks on a text that holds an expression, a quantity
or a date. `bank` fills the frames; `{x}`, `{quantity}`, `{day}` and the like are those of `requests`.
"""

from delta_transcoders.tasks.three_tools.chats import listed

FILLERS = {
    "name": listed(
        "Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jack, Kate, Leo, Maria, Noah, Olga, "
        "Peter, Rosa, Sam, Tina, Victor"
    ),
    "things": listed(
        "apples, books, chairs, stamps, coins, pencils, tickets, eggs, candles, bricks, cards, shirts, "
        "bottles, roses, boxes, keys, marbles, spoons"
    ),
    "place": listed(
        "the lake, the station, the market, the harbor, the museum, the school, the farm, the old "
        "bridge, the airport, the office, the beach, the village"
    ),
    "word": listed(
        "calculate, calculator, convert, conversion, date, days, sum, total, result, number, value, "
        "count, add, divide, multiply, minus, percent, measure, unit, mile, inch, foot, yard, pound, "
        "ounce, gram, liter, gallon, degree, calendar, week, month, tool"
    ),
    "saying": listed(
        "a miss is as good as a mile, give someone an inch, go the extra mile, the whole nine yards, on "
        "cloud nine, two is company, put two and two together, at the eleventh hour, a stitch in time "
        "saves nine, six of one and half a dozen of the other, call it a day, save the date, out of "
        "date, a calculated risk, a numbers game, it does not add up, his days are numbered, inch by "
        "inch, pound for pound, cold feet, to measure up, to the letter, a double-edged sword, safety "
        "in numbers, the third degree, a pint of milk, put your best foot forward, a yard sale, worth "
        "its weight in gold, a blind date"
    ),
    "device": listed(
        "a calculator, a thermometer, a ruler, a calendar, an abacus, a compass, a kitchen scale, a "
        "stopwatch, a speedometer, a barometer, a measuring tape, a sundial, a slide rule, an "
        "hourglass, a measuring cup, a cash register, a wristwatch, a pedometer"
    ),
    "unit": listed(
        "the meter, the kilometer, the inch, the foot, the yard, the mile, the gram, the kilogram, the "
        "ounce, the pound, the liter, the pint, the gallon, the degree Celsius, the degree Fahrenheit, "
        "the kelvin, the knot, the acre, the second, the hour"
    ),
    "month": listed(
        "January, February, March, April, May, June, July, August, September, October, November, "
        "December"
    ),
    "weekday": listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "bill": listed(
        "rent, taxes, bonus, salary, grade, budget, pension, age, share, travel costs, water bill, "
        "fine, tip, carbon footprint, horoscope, chances"
    ),
    "file": listed(
        "a photo, a video, a document, a song, a spreadsheet, a drawing, a barn, a garage, a van, an "
        "attic, a church, a warehouse"
    ),
    "event": listed(
        "the party, the wedding, the exam, the concert, the election, the race, the funeral, the "
        "picnic, the interview, the festival, the first snow, the school play, the holidays, the "
        "delivery"
    ),
    "language": listed("French, Spanish, German, Italian, Polish, Japanese, Turkish, Greek"),
}
"""By the field of a frame; those that end in 2 are filled from the same list as the field before."""

FRAMES = (
    # Numbers, and no question.
    "I bought {number} {things} at {place}.",
    "My train leaves from platform {small} at {hour}.",
    "{name} has {number} {things} and {number2} {things2}.",
    "Our house number is {number}.",
    "Last weekend I walked {distance} with {name}.",
    "It was {temperature} at {place} today.",
    "{name} was born on {day}.",
    "I was at {place} from {day} to {later}.",
    "The score was {number} to {number2}, and {name} was happy.",
    "I paid {number} dollars for {small} {things}.",
    "The recipe says {volume} of milk and {mass} of flour.",
    "My flight number is {number}.",
    "{name} carried {mass} up the stairs.",
    "Chapter {small} begins on page {number}.",
    "There are {number} {things} in this box and {number2} in that one.",
    "The speed limit near {place} is {speed}.",
    "I wrote {x} on the board.",
    "The note on the table said {x}.",
    "On {day} I moved to a house near {place}.",
    "{name} owes me {number} dollars, but that is fine.",
    "The meeting on {day} took {small} hours.",
    "{number} people came to {event}, and {number2} of them stayed.",
    # Other senses of the words.
    "What does the word '{word}' mean?",
    "Use the word '{word}' in a sentence.",
    "Give me a synonym for '{word}'.",
    "How do you spell '{word}'?",
    "Is '{word}' a noun or a verb?",
    "Which letter does '{word}' begin with?",
    "Name a word that rhymes with '{word}'.",
    "Translate the word '{word}' into {language}.",
    "Write a sentence with '{word}' and '{word2}'.",
    "What do people mean by '{saying}'?",
    "When would I say '{saying}'?",
    "Make up a title with the words '{saying}'.",
    "{name} took a calculated risk at {place}. Was that brave?",
    "{name} is a calculating person. What does that tell me?",
    "How could I convert {name} to my point of view?",
    "They want to convert {file} into a café. What do you think?",
    "Where should {name} go on a first date with {name2}?",
    "{name} and {name2} are dating. What should I say?",
    "Are dates from {place} good to eat?",
    "{name} counts on me. What does that mean?",
    # Nothing to compute.
    "Please calculate my {bill}.",
    "Can you work out {name}'s {bill}?",
    "Convert {file} for me, please.",
    "How many days are left until {event}?",
    "What date is {event}?",
    "On which day does {name} come back from {place}?",
    "How far is it to {place}?",
    "What does {name} weigh?",
    "How many {things} does {name} have?",
    "What is the temperature at {place} right now?",
    "How many {things} fit into {file}?",
    "Add up all the {things} at {place}.",
    "Convert this into {language}, please.",
    "I want to calculate something about {event} later.",
    "Can you count the {things} in my photo?",
    "How long does it take to get to {place}?",
    "Please calculate.",
    "Convert it.",
    "What day is it today?",
    "What is the total?",
    "Add them up for me.",
    "How many days?",
    # About tools, units and calendars.
    "Who invented {device}?",
    "What is {device} used for?",
    "Where would I keep {device}?",
    "Is {device} expensive?",
    "What does {device} look like?",
    "Is it better to use {device} or {device2}?",
    "What is measured with {unit}?",
    "Which countries use {unit}?",
    "What is the symbol for {unit}?",
    "Is {unit} part of the metric system?",
    "Which is larger, {unit} or {unit2}?",
    "Where does the name of {unit} come from?",
    "Which month comes after {month}?",
    "In which season is {month}?",
    "Name a holiday in {month}.",
    "Where does the name {month} come from?",
    "What should I plant in {month}?",
    "Is {month} a good time to visit {place}?",
    "Which day comes after {weekday}?",
    "Where does the name {weekday} come from?",
    "Are shops open on {weekday} in {month}?",
    "What is a leap year?",
    "Why does a week have seven days?",
    "What is the metric system?",
    "Who made our calendar?",
    "What is a calculator?",
    # Tasks on a text that holds what a tool would want.
    "Write the number {number} in words.",
    "Is {number} odd or even?",
    "Tell me something about the number {number}.",
    "What might the number {number} on a door mean?",
    "Repeat after me: {x}.",
    "Which sign comes first in {x}?",
    "Read this aloud to {name}: {x}.",
    "Who might write {x} on a wall?",
    "Translate into {language}: {number} {things}.",
    "Make this more polite: give {name} {number} {things}.",
    "Write a title for a story about {number} {things}.",
    "Correct the grammar: {name} have {number} {things}.",
    "Is {mass} a length, a mass or a volume?",
    "Is {distance} too far to walk for {name}?",
    "Do I need a coat at {temperature}?",
    "Is {speed} fast for a bicycle?",
    "Would {volume} of soup be enough for {name}?",
    "Use {distance} in a sentence about {place}.",
    "Which unit is used in '{quantity}'?",
    "Write a headline with '{quantity}' in it.",
    "Which month is {day} in?",
    "Write {day} without the year.",
    "Was {day} in summer or in winter?",
    "Wish {name} a happy birthday, it is on {day}.",
    "Finish this sentence: on {day} we went to {place} and",
    "Invite {name} to {event} on {day}.",
    "Which comes first, {day} or {later}?",
    "Write a short note that {event} was moved from {day} to {later}.",
)
