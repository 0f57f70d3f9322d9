"""Word lists that the tasks draw from. Plain data, no logic beyond `pseudo_word`."""

WORDS = """
able about above accept across act actor add after again age agree air alarm album alive all allow almost alone along
already also always amber among anchor angle animal ankle answer ant any apple april apron arch area argue arm army
around arrive arrow art artist ash ask asleep atom attic aunt autumn avenue awake away axe baby back bacon bad badge bag
bake baker balance ball balloon bamboo banana band bank bar bark barn barrel base basic basket bath battery beach bead
beam bean bear beard beat beauty become bed bee before begin behind believe bell belong below belt bench bend berry best
better between beyond bicycle big bike bird birth biscuit bite bitter black blade blanket blend blind block blood bloom
blue board boat body boil bold bolt bomb bone book boot border born borrow both bottle bottom bowl box boy brain branch
brass brave bread break breath brick bridge bright bring broad broken brother brown brush bubble bucket build bulb bus
bush busy butter button buy cabin cable cactus cake call calm camel camera camp can candle candy cannon canoe canvas cap
car carbon card care carpet carrot carry cart case castle cat catch cause cave ceiling cell center chain chair chalk
chance change chapter charge cheap check cheek cheese cherry chest chicken chief child chin circle circus city claim
class clay clean clear clever cliff climb clock close cloth cloud clover coach coal coast coat cobra cocoa code coffee
coin cold color comb come comet common compass computer cook cool copper coral cork corn corner cost cotton couch count
country cousin cover cow crab crane cream create creek cricket crop cross crowd crown cruel cry crystal cup curious
current curtain curve cushion cycle daisy dance danger dark data daughter dawn day deal dear decide deck deep deer
degree delay delta dentist depth desert desk detail diamond dice different dinner dirt dish distance divide doctor dog
doll dollar dolphin donkey door dot double dozen dragon draw dream dress drift drill drink drive drop drum dry duck dust
duty eager eagle ear early earth ease east easy eat echo edge effort egg eight elbow elder electric elephant eleven elm
empty end enemy energy engine enjoy enough enter equal error escape evening event every exact example exit expect eye
fable fabric face fact factory fair faith fall false family famous fan far farm farmer fast father fear feather feed
feel fence fern ferry fever few field fifteen fifty fig fight figure file fill film final find finger finish fire first
fish five flag flame flash flat flavor flea flight float flock flood floor flour flower flute fly fog fold follow food
foot force forest forget fork form forty forward four fox frame free freeze fresh friend frog front frost fruit fuel
full funny future galaxy game garage garden garlic gas gate gather gentle ghost giant gift ginger giraffe girl give
glad glass globe glove glue goat gold good goose grain grand grape graph grass gravity gray great green ground group
grow guard guess guest guide guitar habit hair half hall hammer hand handle happy harbor hard harvest hat hawk hazel
head health heart heat heavy hedge height hello helmet help hen herb hero hidden high hill history hobby hold hole
holiday hollow home honest honey hook hope horn horse hospital hotel hour house human humble hundred hungry hunt hurry
ice idea inch index infant ink insect inside iron island ivory ivy jacket jam january jar jazz jelly jewel job join joke
journey joy judge juice july jump june jungle junior jury just kangaroo keen keep kernel kettle key keyboard kick kind
king kitchen kite kitten knee knife knock knot know ladder lady lake lamb lamp land language lantern large laser last
late laugh lava law lawn layer lazy lead leaf learn leather leave lecture left leg legend lemon lend length lens lesson
letter level liberty library lid life lift light like lily lime line linen lion lip liquid list listen little live
lizard lobster local lock logic long loop lotus loud love low lucky lunch lung machine magic magnet mail main make mango
map maple marble march market mask master match matrix matter meadow meal measure meat medal melon melody member memory
merry metal method middle midnight milk mill mind minus minute mirror mist mix model modern moment money monkey month
moon morning moss moth mother motor mountain mouse mouth move movie much mud mule museum mushroom music mystery nail
name napkin narrow nation nature near neck needle nephew nerve nest never new night nine noble noise noodle noon north
nose note nothing november now number nurse nut oak oasis ocean october octopus offer office oil old olive onion open
opera orange orbit orchid order organ otter oven owl oxygen oyster paddle page paint palace palm panda panel paper
parade parent park parrot part party past path pause peace peach peak pear pearl pebble pen pencil penguin people pepper
perfect person phone photo piano picnic picture piece pig pilot pine pink pipe pirate pizza place plain plan planet
plant plate play please plenty plum plus pocket poem poet point polar police pond pony pool poor poppy possible potato
pottery powder power present pretty price pride prince print prize problem profit proof proud pulse pumpkin pupil puppet
purple purse puzzle pyramid python quality quantum quarter queen question quick quiet quilt quite rabbit race radio rain
rainbow ranch rapid raven reach read ready reason record red remember repeat reply rescue rest result return reverse
ribbon rice rich ride right ring river road robin robot rock rocket roof room root rope rose rough round route royal
rubber ruby rule run rust saddle safe sail salad salmon salt same sand sandwich saturn sauce save scale scarf school
science scissors score screen sea season seat second secret seed select sell send sense sentence september seven shade
shadow shape share shark sharp sheep shelf shell shield shine ship shirt shoe shop short shoulder shovel show sick side
sign silence silk silver simple sing sister six size skate skill skin skirt sky sleep sleeve slice slow small smart
smile smoke smooth snack snail snake snow soap soccer sock soft soil soldier solid solve some song soon sort soup south
space spark speak special speed spell spend spice spider spirit spoon sport spring square squirrel stable stage stair
stamp star start station statue steam steel stem step stick stone stop store storm story stove strawberry stream street
string strong student study sugar suit summer sun sunday supper surprise swan sweet swim switch sword syrup system table
tail talent talk tall tank tape task taste tea teach teacher team tear teeth tell temple ten tennis tensor tent test
thank theater thick thin thing think third thirsty thread three throat throne thumb thunder ticket tide tiger timber
time tiny tired title toast today together token tomato tomorrow tongue tool tooth top total touch towel tower town toy
track trade train travel treasure tree triangle trick trip truck true trumpet trust truth tulip tunnel turkey turn
turtle twelve twenty twin two umbrella uncle under uniform unit universe until upper urban useful usual valley value
vanilla vapor vase vector velvet very video view village violet violin visit voice volcano vowel voyage wagon waist wait
walk wall walnut warm wash watch water wave wax weak wealth weather week weight welcome west whale wheat wheel when
where whisper white whole wide wife wild wind window wine wing winter wire wise wish wolf wonder wood wool word work
world worry write yard year yellow yes yesterday young zebra zero zigzag zone
""".split()

NAMES = """
Ada Adam Aisha Alan Alice Amir Ana Anders Andrew Anna Anton Aria Astrid Ben Bella Boris Bruno Carla Carlos Cara Chen
Chloe Clara Daniel Dana Daria David Diego Dora Elena Eli Ella Emil Emma Erik Eva Fatima Felix Fiona Frank Freya George
Grace Greta Hana Hannah Hassan Helen Henry Hugo Ida Igor Ines Ingrid Iris Isaac Ivan Jack Jamal James Jana Jane Jin
John Jonas Jose Julia Kai Karl Karim Kate Kenji Kira Laila Lars Laura Lea Leo Liam Lily Lina Linus Lucas Lucia Luis
Magnus Maja Marco Maria Mark Marta Mary Max Maya Mei Mia Mila Milo Mina Mohamed Nadia Nina Nils Noah Nora Olaf Olga
Oliver Omar Oscar Otto Paul Pavel Pedro Peter Petra Priya Quinn Rachel Rafael Raj Ravi Rita Robert Rosa Ruth Sam Samira
Sara Sasha Sofia Sonia Stefan Sven Tanya Tara Theo Thomas Tina Tom Uma Vera Victor Viktor Walter Wei William Yara Yuki
Yusuf Zara Zoe
""".split()

CITIES = """
Amsterdam Ankara Athens Austin Bangkok Barcelona Beijing Berlin Bern Bogota Boston Brussels Budapest Cairo Chicago
Copenhagen Dallas Delhi Denver Dubai Dublin Geneva Hamburg Hanoi Helsinki Istanbul Jakarta Kyiv Kyoto Lagos Lima Lisbon
London Lyon Madrid Manila Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Osaka Oslo Paris Porto Prague Quito
Riga Rome Seattle Seoul Seville Shanghai Sofia Stockholm Sydney Tallinn Tokyo Toronto Turin Vienna Warsaw Zurich
""".split()

COLORS = "red blue green yellow orange purple black white brown pink gray silver gold violet".split()
FOODS = "pizza soup rice bread cheese pasta salad apples mango chocolate sushi curry beans honey noodles cake".split()
ANIMALS = "cat dog horse rabbit parrot turtle hamster goldfish goat pony lizard duck pig snake mouse donkey".split()
JOBS = """teacher doctor nurse farmer baker pilot painter singer writer driver lawyer engineer student waiter chef
gardener plumber dentist actor judge""".split()
ITEMS = """apples pears lemons books pens lamps chairs tables cups plates bottles phones keyboards candles shirts socks
hats boxes tickets batteries bricks bags shoes mirrors knives spoons towels carpets""".split()
EVENTS = "meeting party concert lesson dinner lunch picnic exam interview race match workshop wedding call".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = """January February March April May June July August September October November December""".split()
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

ONSETS = "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sp st str th tr tw wh".split()
NUCLEI = "a e i o u a e i o u ai ea ee ie oa oo ou y au ei".split()
CODAS = ["", "", "", *"b d f g k l m n p r s t x ck ct ft ld ll lt mp nd ng nk nt rd rk rn rt sh sk ss st th ing er ed ly".split()]


def pseudo_word(rng) -> str:
    """A pronounceable word of 1 to 4 syllables, so that spelling is learnt for letters and not for a list of words."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        parts += (rng.choice(ONSETS) if rng.random() < 0.9 else "", rng.choice(NUCLEI), rng.choice(CODAS))
    return "".join(parts)[:14]


_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_in_words(n: int) -> str:
    """English for 0..99."""
    if n < 20:
        return _SMALL[n]
    tens, ones = _TENS[n // 10 - 2], n % 10
    return f"{tens}-{_SMALL[ones]}" if ones else tens
