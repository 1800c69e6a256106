"""General chats, as frames and what fills them: short questions that invite short answers.

Nothing here holds a number to compute with, a quantity or a date. `bank` fills the frames.
"""


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


FILLERS = {
    "country": listed(
        "France, Spain, Italy, Portugal, Norway, Sweden, Finland, Denmark, Iceland, Ireland, Scotland, "
        "Poland, Hungary, Austria, Greece, Turkey, Egypt, Morocco, Kenya, Nigeria, Ghana, Ethiopia, "
        "South Africa, India, Nepal, China, Japan, South Korea, Vietnam, Thailand, Indonesia, "
        "Australia, New Zealand, Canada, Mexico, Cuba, Brazil, Argentina, Chile, Peru, Colombia, Iran, "
        "Israel, Ukraine, Romania, Switzerland, Belgium"
    ),
    "city": listed(
        "Paris, London, Rome, Madrid, Berlin, Vienna, Prague, Lisbon, Athens, Cairo, Nairobi, Lagos, "
        "Cape Town, Mumbai, Delhi, Beijing, Tokyo, Seoul, Bangkok, Sydney, Toronto, New York, Chicago, "
        "San Francisco, New Orleans, Havana, Lima, Buenos Aires, Istanbul, Moscow, Dublin, Venice, "
        "Amsterdam, Copenhagen"
    ),
    "animal": listed(
        "a fox, an owl, a bear, a wolf, a horse, a cow, a goat, a sheep, a dolphin, a whale, a shark, a "
        "penguin, an eagle, a parrot, a frog, a snake, a turtle, a crocodile, a bee, an ant, a "
        "butterfly, a spider, a mouse, a rabbit, a squirrel, a hedgehog, a bat, an elephant, a lion, a "
        "tiger, a giraffe, a zebra, a monkey, a kangaroo, a koala, a camel, an octopus, a crab, a swan, "
        "a duck, a hamster, a beaver"
    ),
    "food": listed(
        "bread, rice, pasta, cheese, butter, honey, chocolate, coffee, tea, soup, salad, pizza, sushi, "
        "curry, yogurt, garlic, ginger, cinnamon, olive oil, tofu, oatmeal, mushrooms, spinach, "
        "carrots, potatoes, tomatoes, apples, bananas, strawberries, lemons, almonds, lentils, salmon, "
        "chicken, popcorn, pancakes"
    ),
    "job": listed(
        "a nurse, a doctor, a teacher, a baker, a farmer, a pilot, a plumber, an electrician, a "
        "carpenter, a judge, a lawyer, a journalist, a photographer, an architect, a librarian, a "
        "gardener, a firefighter, a chef, a waiter, a tailor, a translator, a sailor, a miner, a "
        "dentist, a vet, a musician, an actor, a dancer, a programmer, a bus driver, a florist, a "
        "painter"
    ),
    "object": listed(
        "an umbrella, a candle, a mirror, a pillow, a backpack, a ladder, a hammer, a needle, a kettle, "
        "a frying pan, a bicycle, a guitar, a piano, a violin, a lamp, a carpet, a blanket, a basket, a "
        "vase, a whistle, a flag, a tent, a sleeping bag, a pair of scissors, a toothbrush, a comb, a "
        "wallet, a key, a lock, a magnet, a microscope, a camera, a broom, a bucket, a rope, a scarf, a "
        "helmet"
    ),
    "adjective": listed(
        "happy, sad, brave, calm, curious, gentle, quick, slow, loud, quiet, bright, dark, heavy, "
        "smooth, rough, clever, honest, polite, rude, lazy, busy, proud, shy, strange, famous, ancient, "
        "modern, generous, greedy, fragile, strong, empty, narrow, wide, bitter, sweet, dangerous, "
        "safe, beautiful, ugly"
    ),
    "hobby": listed(
        "gardening, cooking, baking, painting, drawing, knitting, sewing, fishing, hiking, climbing, "
        "swimming, running, cycling, skiing, sailing, dancing, singing, reading, writing, chess, "
        "photography, pottery, birdwatching, camping, yoga, juggling, origami, woodworking, "
        "calligraphy, surfing"
    ),
    "term": listed(
        "gravity, photosynthesis, evolution, electricity, magnetism, friction, erosion, oxygen, water, "
        "light, sound, heat, a cell, an atom, a molecule, a planet, a star, a comet, a volcano, an "
        "earthquake, a glacier, a rainbow, a tide, lightning, fog, a virus, a vaccine, a fossil, a "
        "desert, an ecosystem, democracy, inflation, poetry, irony, friendship, justice"
    ),
    "person": listed(
        "Albert Einstein, Marie Curie, Isaac Newton, Charles Darwin, Galileo, Leonardo da Vinci, "
        "Michelangelo, Vincent van Gogh, Claude Monet, Frida Kahlo, Pablo Picasso, Mozart, Beethoven, "
        "Bach, Shakespeare, Jane Austen, Charles Dickens, Mark Twain, Cleopatra, Julius Caesar, "
        "Napoleon, Abraham Lincoln, Gandhi, Nelson Mandela, Martin Luther King, Florence Nightingale, "
        "Amelia Earhart, Neil Armstrong, Socrates, Plato"
    ),
    "situation": listed(
        "I lost my keys., My phone is broken., I missed my bus., I feel tired today., I forgot my "
        "friend's birthday., My neighbor is very noisy., I have a headache., I can't sleep., I am "
        "nervous about an interview., My plant is dying., I spilled coffee on my shirt., My computer is "
        "very slow., I had a fight with my brother., I am bored., I got a new job., My dog ran away., I "
        "moved to a new town., I burned my dinner., I want to learn Spanish., I am going on a trip., It "
        "is raining and I have no umbrella., I broke a glass., My best friend is ill., I have to give a "
        "speech., I left my bag on the train., I won a prize., My bike has a flat tire., I want to read "
        "more., My room is a mess., I am cooking for guests."
    ),
    "sentence": listed(
        "The dog sleeps by the door., My sister sings in the choir., We walk to school together., The "
        "children play in the garden., He writes letters to his mother., The cat drinks milk., She "
        "opens the window., The birds fly south., They build a house near the lake., I like warm "
        "bread., The baker gets up early., Our teacher tells good stories., The river runs through the "
        "town., The old man feeds the ducks., We watch the stars., My brother paints the fence., The "
        "train is late., The soup tastes good., Snow covers the hills., The king lives in a castle., "
        "The baby laughs., Nobody knows the answer., The moon is bright tonight., She forgot her hat., "
        "The actor waves to the crowd., It smells of fresh coffee here., The lake is frozen., A "
        "stranger knocks at the door."
    ),
    "language": listed(
        "French, Spanish, German, Italian, Portuguese, Dutch, Swedish, Polish, Russian, Japanese, "
        "Chinese, Korean, Arabic, Hindi, Turkish, Greek, Latin, Swahili, Finnish, Hungarian, Danish, "
        "Norwegian, Czech, Irish"
    ),
    "topic": listed(
        "the sea, the moon, autumn, winter, a lighthouse, a lost letter, an old clock, a dragon, a "
        "pirate, a train, a forest, a storm, a garden, a robot, a princess, a detective, a library, a "
        "castle, a market, a desert, a mountain, a secret door, a blue bird, a long journey, a snowman, "
        "a village, a ghost, a wedding"
    ),
}
"""By the field of a frame; those that end in 2 are filled from the same list as the field before."""

FRAMES = (
    "What is the capital of {country}?",
    "Which language do people speak in {country}?",
    "On which continent is {country}?",
    "Name a dish from {country}.",
    "Name a large city in {country} that is not the capital.",
    "Which colors are on the flag of {country}?",
    "Which country is next to {country}?",
    "Is {country} an island?",
    "What is {country} famous for?",
    "How do people say hello in {country}?",
    "In which country is {city}?",
    "Name one sight in {city}.",
    "What is the weather in {city} like in general?",
    "What should I eat in {city}?",
    "Is {city} by the sea?",
    "Would you rather live in {city} or in {city2}?",
    "What do people call someone from {city}?",
    "Suggest a name for a café in {city}.",
    "What does {animal} eat?",
    "Where does {animal} live?",
    "What sound does {animal} make?",
    "What color is {animal}?",
    "Is {animal} a mammal?",
    "Can {animal} swim?",
    "Would {animal} make a good pet?",
    "How does {animal} protect itself?",
    "Give me a name for {animal} in a story for children.",
    "Which is bigger, {animal} or {animal2}?",
    "Tell me a fact about {animal}.",
    "What goes well with {food}?",
    "How do I store {food}?",
    "Is {food} healthy?",
    "Describe the taste of {food}.",
    "What can I drink with {food}?",
    "Is {food} sweet or salty?",
    "Which country is known for {food}?",
    "Where does {food} come from?",
    "Can I eat {food} for breakfast?",
    "Which do you like more, {food} or {food2}?",
    "What does {job} do?",
    "Where does {job} work?",
    "What does {job} wear at work?",
    "What does {job} need to be good at?",
    "Name a present for {job}.",
    "Is it hard to be {job}?",
    "What would {job} say on a Monday morning?",
    "Who earns more, {job} or {job2}?",
    "What do we call the place where {job} works?",
    "What is {object} used for?",
    "What is {object} made of?",
    "Where can I buy {object}?",
    "How do I clean {object}?",
    "What could I use instead of {object}?",
    "May I take {object} on a plane?",
    "Is {object} a good present?",
    "Where should I keep {object}?",
    "Write a riddle about {object}.",
    "Give me another word for '{adjective}'.",
    "What is the opposite of '{adjective}'?",
    "Use '{adjective}' in a sentence.",
    "Name something that is {adjective}.",
    "Is it good to be {adjective}?",
    "How do you say '{adjective}' in {language}?",
    "What do I need for {hobby}?",
    "Is {hobby} expensive?",
    "Why do people like {hobby}?",
    "Give me one tip for {hobby}.",
    "Is {hobby} good for children?",
    "Write a slogan for a {hobby} club.",
    "What should I wear for {hobby}?",
    "Is {hobby} more fun than {hobby2}?",
    "What is {term}?",
    "Explain {term} to a child.",
    "Who studies {term}?",
    "Why is {term} important?",
    "Where do we meet {term} in everyday life?",
    "Can you see {term}?",
    "Write a title for a book about {term}.",
    "Who was {person}?",
    "What is {person} known for?",
    "Where was {person} born?",
    "Which language did {person} speak?",
    "Was {person} a scientist, an artist or a leader?",
    "Who came first, {person} or {person2}?",
    "What would you ask {person}?",
    "{situation} What should I do?",
    "{situation} Say something kind.",
    "{situation} Who can help me?",
    "{situation} Give me one idea.",
    "{situation} How would you feel?",
    "{situation} Should I tell my mother?",
    "Translate into {language}: {sentence}",
    "Put this in the past tense: {sentence}",
    "Turn this into a question: {sentence}",
    "Which word is the verb? {sentence}",
    "Say this in other words: {sentence}",
    "Who might say this? {sentence}",
    "Does this sound happy or sad? {sentence}",
    "What could come next? {sentence}",
    "Make this sentence longer: {sentence}",
    "How do I say thank you in {language}?",
    "Where do people speak {language}?",
    "Is {language} hard to learn?",
    "Teach me a word in {language}.",
    "Write the first line of a story about {topic}.",
    "Write a two-line poem about {topic}.",
    "Suggest a title for a song about {topic}.",
    "What does {topic} make you think of?",
    "Draw {topic} with words.",
    "Which color fits {topic}?",
    "Hello!",
    "Good morning!",
    "How are you?",
    "What is your name?",
    "Tell me a joke.",
    "Thank you!",
    "Can you help me?",
    "What can you do?",
    "Do you like music?",
    "Sing me a song.",
    "Goodbye!",
    "Tell me something nice.",
    "Are you a human?",
    "What should I cook tonight?",
    "Recommend a book.",
    "I have nothing to say.",
)
