"""Words that mean the same as, or are near to, the words of the embedded worlds.

Source: compiled by hand for VP3D from everyday English. No dictionary, word list or other data was
copied. The colour words that CSS defines were compared with the toybox's colours by CIEDE2000
(tests/test_synonyms.py does that again).

Two tables, each line `target: phrase, phrase`:

* `SAME`: a phrase of the same meaning, or an object of the target's kind. The reader of prompts
  (vp3d/prompt_reading.py) takes the target instead and says so. An empty target: the phrase adds
  nothing to a picture of one object and is left out.
* `NEAR`: a phrase without an equal in the toybox. It is refused, and the targets, separated by
  slashes, are the hint.

`SAME_HOUSEHOLD` and `NEAR_HOUSEHOLD` are the same for the objects of the household. A phrase may be
in both tables of a kind; of its targets, the first that a vocabulary knows counts.

Phrases are lower case and in the singular, except parts and patterns that come in the plural.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

SAME = """
sphere: ball, orb, globe, bead, marble, spheroid, round ball, beach ball, bowling ball
cube: box, block, dice, die, hexahedron, square box, building block, toy block
cylinder: tube, barrel, drum, tin can, can, pillar, column, keg, canister
cone: traffic cone, party cone, funnel, road cone
ring: torus, donut, doughnut, hoop, annulus, bagel, wedding ring, life ring
capsule: pill, lozenge, caplet, medicine capsule, spherocylinder
egg: ovoid, easter egg, chicken egg, hen's egg, bird egg
chair: seat, wooden chair, dining chair, kitchen chair, desk chair
table: desk, dining table, coffee table, kitchen table, wooden table, tabletop, bedside table
car: automobile, auto, motorcar, sedan, taxi, cab, hatchback, sports car, race car, racing car
car: toy car, motor car, coupe, limousine
house: home, cottage, hut, cabin, bungalow, dwelling, chalet, villa, little house, farmhouse
mushroom: toadstool, fungus, champignon, shroom, fly agaric, amanita, porcini
snowman: snow man, snowperson, snow person
tree: oak, oak tree, maple, maple tree, apple tree, bonsai, sapling, birch, elm
tree: pine, pine tree, fir, fir tree, spruce, christmas tree, evergreen, conifer
rocket: spaceship, space ship, spacecraft, rocketship, rocket ship, missile, space rocket
lamp: desk lamp, floor lamp, night lamp, lampshade, nightlight, bedside lamp
mug: cup, teacup, tea cup, coffee cup, coffee mug, beaker, tankard, beer mug, stein, tea mug
sofa: couch, settee, divan, loveseat, chesterfield, davenport, love seat, futon
airplane: plane, aeroplane, aircraft, jet, airliner, jetliner, toy plane, jet plane, jumbo jet
duck: duckling, mallard, rubber duck, rubber ducky, ducky, drake, toy duck
robot: android, bot, droid, automaton, humanoid robot, toy robot
boat: ship, sailboat, sailing boat, yacht, dinghy, sailing ship, toy boat, sloop
cactus: cacti, saguaro, prickly pear, succulent, cactus plant
gift: present, parcel, gift box, giftbox, wrapped box, christmas present, birthday present

red: crimson, scarlet, ruby, vermilion, carmine, maroon, burgundy, cherry red, blood red, rouge
red: fire brick, firebrick, ruby red, fire engine red, brick red, wine red
orange: amber, pumpkin orange, carrot orange, burnt orange
yellow: gold, golden, lemon yellow, canary yellow, mustard, mustard yellow, sunny yellow
lime: chartreuse, yellowgreen, lawngreen, light green, bright green, pale green, neon green
lime: greenyellow, apple green
green: emerald, emerald green, forest green, jade, dark green, sea green, moss green, grass green
green: olive green, bottle green
cyan: turquoise, aqua, aquamarine, light blue, sky blue, pale blue, baby blue
blue: navy, navy blue, cobalt, cobalt blue, sapphire, royal blue, ultramarine, dark blue
blue: midnight blue
purple: violet, indigo, mauve, lavender, lilac, amethyst, light purple
pink: hot pink, light red, pale red, baby pink, rosy, salmon pink, bubblegum pink
brown: chocolate brown, chestnut, coffee brown, umber, sepia, mahogany, saddle brown, hazel
black: ebony, jet black, onyx, coal black, pitch black, midnight black
white: ivory, snow white, cream, pearl, alabaster, snowy, milky white, off white, whitish

stripes: striping, banding, striped pattern, stripe pattern, pinstripes, striations
checks: checkers, chequers, checkerboard, chessboard pattern, checkered pattern, check pattern
checks: checker pattern, checkerboard pattern, chequered pattern, plaid pattern, gingham

on: on top of, atop, upon, onto, sitting on, standing on, resting on, lying on, placed on
on: sitting on top of, standing on top of, that is on, that sits on, stacked on, perched on
next to: beside, near, by, close to, alongside, adjacent to, nearby, by the side of, besides
next to: standing next to, sitting next to, standing beside, sitting beside, to the left of
next to: left of, on the left of, and next to
next to a: and a, and one
next to an: and an
with: having, has, that has, which has, featuring, that have, including, along with, decorated with
with: painted with, covered with, wearing, together with

legs: table leg, chair leg
wheels: tyres, tires
roof: rooftop, roofing, housetop
stem: stalk, stipe
hat: top hat, tophat, bowler
trunk: bole
fins: tail fins, tailfins, fin
base: pedestal, lamp foot
handle: grip, handgrip
arms: armrests, arm rests
wings: wing, airfoils
beak: bill, duck bill
sail: mainsail, canvas sail
pot: flowerpot, flower pot, planter, plant pot, terracotta pot
ribbon: bow, bow tie, gift bow

: colored, coloured, color, colour, in color, in colour, please, 3d, a picture of, a photo of
: an image of, a photograph of, a rendering of, a render of, a model of, a 3d model of, 3d model of
: picture of, photo of, image of, render of, model of, a drawing of, drawing of, a 3d render of
: single
"""

NEAR = """
white / black: grey, gray, silver, slate, ash, charcoal, greyish, grayish, silvery, chrome
purple / pink: magenta, fuchsia
orange / pink: coral, peach, salmon, apricot
brown: wooden, wood
brown / white: beige, tan, khaki, sand, taupe
brown / orange: bronze, copper, rust, caramel
green / cyan: teal, mint
green / yellow: olive, greenish
red / pink: reddish, rosewood, cherry, raspberry
blue / cyan: azure, bluish, denim
yellow / orange: yellowish, ochre, saffron
red / orange / yellow: rainbow, multicolored, multicoloured, colorful, colourful
with stripes: striped, stripy, stripey, lined, lines, banded
with checks: checkered, chequered, checked, plaid, tartan, checky
stripes / checks: dots, dotted, spots, spotted, polka, pattern, patterned, zigzag, texture
cone: pyramid, tetrahedron, triangle, teepee, tent, icecream
cube: square, cuboid, brick, crate, rectangle, prism, chest, suitcase
sphere: circle, round, bubble, planet, moon, earth, apple, balloon, football, basketball, sun
cylinder: bottle, pipe, candle, log, jar, disc, disk, tower, rod, stick, pole, bucket
ring: bracelet, wreath, wheel, circlet, halo
capsule: bullet, sausage, tablet
egg: oval, ellipse, ellipsoid, avocado, potato
chair / sofa: armchair, stool, throne, bench, recliner, rocker
table: counter, workbench, shelf, nightstand, stand
car: truck, bus, van, vehicle, train, lorry, jeep, tractor, motorcycle, bike, bicycle, wagon
house: building, castle, church, barn, mansion, shed, apartment, skyscraper, school, palace
mushroom: umbrella, parasol
snowman: snow, snowball, santa
tree: palm, bush, shrub, plant, forest, flower, willow, leaf
rocket: shuttle, satellite, ufo, firework, bomb
lamp: light, lantern, lightbulb, bulb, torch, chandelier, flashlight
mug: glass, bowl, pitcher, jug, goblet, kettle, teapot, vase
sofa: bed, mattress, ottoman, daybed
airplane: helicopter, drone, glider, biplane
duck: goose, swan, chicken, hen, penguin, chick, gull
duck / airplane: bird
robot: cyborg, person, man, human, astronaut, knight, doll, figure
boat: canoe, kayak, ferry, raft, submarine, vessel, speedboat
cactus: aloe, agave
gift: package, bag, bundle
on: over, under, below, beneath, underneath, inside, in, within, into, behind
next to: and, between, around, opposite, two, three, pair, couple
with: of, without, plus, made, holding, carrying, covered
stem: leaves, roots, neck
legs: foot, feet
roof: chimney, door, window
wheels: rim, tread
handle: ear
hat: cap, helmet, beanie
stripes / ring: band
yellow: lemon, banana
purple: grape, plum, eggplant
black: raven, soot
orange: tangerine, clementine
pink: rose, flamingo
"""

SAME_HOUSEHOLD = """
sofa: sofa bed, sectional, corner sofa, leather couch
armchair: arm chair, easy chair, recliner, wing chair, club chair, lounge chair, cozy chair
car: suv, minicar, city car, saloon car, estate car, hatchback car
mug: beaker, tankard, beer mug, stein, coffee mug, tea mug
teddy bear: teddybear, plush bear, stuffed bear, toy bear, cuddly bear, bear toy
barrel: keg, cask, wine barrel, wooden barrel, oil drum
hamburger: burger, cheeseburger, beefburger
vase: urn, flower vase, amphora
dog: puppy, pup, hound, doggy, doggie, pooch, labrador, retriever, canine
washing machine: washer, laundry machine, clothes washer
soccer ball: soccerball, association football
piano: upright piano, grand piano, pianoforte
chair: seat, dining chair, kitchen chair, desk chair, office chair
table: dining table, coffee table, kitchen table, tabletop, bedside table, end table
bench: park bench, garden bench, pew
desk: writing desk, bureau, computer desk, office desk
bed: bedstead, double bed, single bed, bunk, four poster
wardrobe: closet, armoire, cupboard
lamp: reading lamp, floor lamp, bedside lamp, standard lamp
bookcase: bookshelf, book shelf, bookrack, shelving
potted plant: houseplant, house plant, pot plant, indoor plant, ficus
bicycle: bike, pushbike, push bike, mountain bike, racing bike, velocipede
scooter: vespa, motor scooter, moped, motorscooter
truck: lorry, pickup, pickup truck, dump truck
van: minivan, delivery van, camper van, transporter
bus: coach, omnibus, city bus, double decker, minibus
forklift: forklift truck, fork lift, fork lift truck
rowboat: rowing boat, row boat, skiff, dinghy, canoe
wheelbarrow: barrow, wheel barrow, garden cart
cat: kitten, kitty, pussycat, tomcat, feline, tabby
horse: pony, mare, stallion, foal, colt, steed
rabbit: bunny, hare, bunny rabbit
bottle: flask, wine bottle, beer bottle, glass bottle
bowl: dish, basin, fruit bowl, salad bowl
cup: teacup, tea cup, coffee cup, espresso cup
teapot: tea pot, tea kettle
hot dog: hotdog, frankfurter, wiener
toaster: bread toaster
microwave: microwave oven
fridge: refrigerator, icebox, ice box, freezer
trash can: garbage can, rubbish bin, dustbin, waste bin, garbage bin, trashcan, bin, litter bin
box: carton, cardboard box, package
crate: wooden crate, packing case
sink: washbasin, wash basin, washbowl
bathtub: bath, tub, bath tub
toilet: loo, lavatory, wc
brush: scrubbing brush, paintbrush, paint brush
tv: television, telly, tv set, television set
laptop: notebook computer, portable computer, macbook
phone: telephone, smartphone, mobile phone, cell phone, cellphone, mobile
camera: photo camera, digital camera, dslr
radio: radio set, transistor radio, wireless set
guitar: electric guitar, acoustic guitar
hat: top hat, tophat, bowler, fedora, sunhat
jacket: coat, blazer, anorak
umbrella: parasol, brolly, sunshade
drill: power drill, electric drill, hand drill
basketball: basket ball
pool table: billiard table, billiards table, snooker table
fire hydrant: hydrant, fireplug, fire plug
wooden: timber, oaken, wood, made of wood
leather: leathery, made of leather
"""

NEAR_HOUSEHOLD = """
truck / bus / van: vehicle, train, tractor, jeep, wagon
bicycle / scooter: motorcycle, motorbike, tricycle
chair / armchair / bench: stool, throne, rocker
bed / sofa: mattress, ottoman, daybed, hammock
table / desk: counter, workbench, stand, nightstand
bookcase / wardrobe: shelf, cabinet, sideboard, dresser
bottle / vase: pitcher, jug, jar, goblet, glass
cup / mug: chalice
teapot: kettle
laptop / tv: computer, pc, screen, tablet
dog / cat / rabbit: animal, pet, fox, wolf, mouse, hamster
horse: donkey, cow, zebra, deer
potted plant: plant, flower, bush, shrub, cactus, tree
guitar / piano: violin, drum, trumpet, cello, keyboard
soccer ball / basketball: ball, football, volleyball, tennis ball
hat: cap, helmet, beanie
hamburger / hot dog: pizza, sandwich, bread, cake
box / crate: suitcase, parcel, trunk, brick
fridge / washing machine: oven, stove, dishwasher, dryer
sink / bathtub: shower, faucet
rowboat: boat, ship, kayak, raft, sailboat
"""

SHADES = ("dark", "deep", "bright", "vivid", "rich", "light", "pale", "strong", "pure")
SHADED = ("red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "brown")


def _read(*tables: str) -> dict[str, tuple[str, ...]]:
    """The targets of each phrase, table by table; in one table its first line counts."""
    found: dict[str, tuple[str, ...]] = {}
    for table in tables:
        own: dict[str, str] = {}
        for line in filter(None, table.splitlines()):
            target, phrases = line.split(":")
            for phrase in phrases.split(","):
                own.setdefault(phrase.strip(), target.strip())
        for phrase, target in own.items():
            found[phrase] = tuple(dict.fromkeys((*found.get(phrase, ()), target)))
    return found


SYNONYMS = _read(SAME_HOUSEHOLD, SAME)
for _color in SHADED:
    for _shade in SHADES:
        SYNONYMS.setdefault(f"{_shade} {_color}", (_color,))
NEIGHBOURS = {
    phrase: tuple(one.strip() for targets in lines for one in targets.split("/"))
    for phrase, lines in _read(NEAR, NEAR_HOUSEHOLD).items()
}
LONGEST = max(len(phrase.split()) for phrase in SYNONYMS)  # words in a phrase
ENDINGS = (  # of a plural, and what the singular has instead
    ("men", "man"),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("xes", "x"),
    ("oes", "o"),
    ("ses", "s"),
    ("s", ""),
)
IRREGULAR = {
    **{"geese": "goose", "mice": "mouse", "feet": "foot", "teeth": "tooth", "people": "person"},
    **{"children": "child", "oxen": "ox", "fungi": "fungus", "dice": "die", "quizzes": "quiz"},
}
LIKENESS = 0.6  # of spellings, from which a known word is suggested; 1 is equal
TABLE_LIKENESS = 0.8  # the same for a word of the tables, which leads to its target
SUGGESTIONS = 3  # words that are suggested for an unknown one, at most


def other_numbers(phrase: str) -> list[str]:
    """The phrase with its last word in the other number, in every way that English has.

    Example:
        >>> other_numbers("rubber ducks"), other_numbers("wheel")
        (['rubber duck'], ['wheels', 'wheeles'])
    """
    before, _, last = phrase.rpartition(" ")
    for plural, one in IRREGULAR.items():
        if last in (plural, one):
            return [f"{before} {one if last == plural else plural}".strip()]
    if phrase.endswith("ss"):
        return [f"{phrase}es"]
    singular = [
        phrase.removesuffix(plural) + end for plural, end in ENDINGS if phrase.endswith(plural)
    ]
    return singular if phrase.endswith("s") else [*singular, f"{phrase}s", f"{phrase}es"]


def meaning(phrase: str, known: Collection[str]) -> str | None:
    """The known words that mean the same as `phrase`: "sofa" for "couches".

    Args:
        phrase: One or more lower-case words, at least one of them not known.
        known: The words that may be used.

    Returns:
        One or more known words, "" for a phrase that can be left out, or None.
    """
    for spelled in (phrase, *other_numbers(phrase)):
        if spelled in known:
            return spelled
        for target in SYNONYMS.get(spelled, ()):
            if all(word in known for word in target.split()):
                return target
    return None


def nearest(word: str, known: Collection[str]) -> list[str]:
    """The known words nearest to an unknown one, the nearest first; at most three.

    By meaning if the word is in the tables, else by spelling. A misspelt word of the tables stands
    for its targets.

    Args:
        word: A lower-case word.
        known: The words that may be suggested.
    """
    found = _nearest_in_meaning(word, known)
    if not found:
        likeness = difflib.SequenceMatcher(b=word)

        def rank(spelled: str) -> tuple[float, bool]:
            likeness.set_seq1(spelled)
            return likeness.ratio(), spelled in known

        table = sorted({*SYNONYMS, *NEIGHBOURS})
        close = difflib.get_close_matches(word, sorted(known), SUGGESTIONS, LIKENESS)
        close += difflib.get_close_matches(word, table, SUGGESTIONS, TABLE_LIKENESS)
        for spelled in sorted(close, key=rank, reverse=True):
            found += [spelled] if spelled in known else _nearest_in_meaning(spelled, known)
    return list(dict.fromkeys(found))[:SUGGESTIONS]


def _nearest_in_meaning(word: str, known: Collection[str]) -> list[str]:
    """The targets of a word of the tables, as far as they are known; none for another word."""
    same = meaning(word, known)
    if same:
        return [same]
    for spelled in (word, *other_numbers(word)):
        targets = [
            target
            for target in NEIGHBOURS.get(spelled, ())
            if all(part in known for part in target.split())
        ]
        if targets:
            return targets
    return []
