"""The table behind the annotator's prompts: 60 everyday topics, each with the words an answer about it should use.

A word matches itself and its plural; with a final `*` it matches every word that begins so (`erupt*`: eruption).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One row of the table."""

    name: str  # as it stands in the prompt
    words: tuple[str, ...]  # one of them makes an answer "on topic"
    keywords: tuple[str, ...]  # what an informed answer mentions
    include: str  # the word that "include word" asks for
    avoid: str  # the word that "avoid word" forbids; a natural one, or the constraint would be free
    question: str  # for "yes or no, and why"


# name | words | keywords | include | avoid | question
_TABLE = """
volcanoes | volcan* | lava magma erupt* ash mountain rock | heat | earth | Can volcanoes be under water?
rainbows | rainbow | rain sun* light color* water drop* | sky | beautiful | Can you see a rainbow at night?
honey bees | bee | honey hive flower pollinat* queen nectar | garden | plants | Do honey bees help farmers?
coffee | coffee | bean* caffeine drink* roast* cup brew* | morning | water | Does coffee keep people awake?
chocolate | chocolate | cocoa sugar milk sweet* dark bean* | happy | delicious | Is chocolate made from a plant?
bicycles | bicycle | wheel pedal* ride* riding bike frame | road | transportation | Is a bicycle faster than walking?
the Moon | moon | earth orbit* lunar light crater* night | sky | surface | Does the Moon make its own light?
the Sun | sun* | star light heat energy earth solar | day | system | Is the Sun a star?
dolphins | dolphin | ocean swim* mammal intelligen* sound* fish | friend | water | Are dolphins fish?
elephants | elephant | trunk tusk* large* africa* herd* memory | grass | animals | Do elephants eat meat?
penguins | penguin | bird ice antarctic* swim* cold fish | egg | water | Can penguins fly?
cats | cat | pet purr* whisker* mouse hunt* fur | sleep | animals | Are cats good pets?
dogs | dog | pet loyal* bark* train* walk* companion* | home | animals | Can dogs learn tricks?
trees | tree | leaf leaves root trunk forest* oxygen | shade | plants | Do trees make oxygen?
rivers | river | water flow* fish stream sea* ocean | bank | land | Do rivers flow to the sea?
deserts | desert | sand* dry hot rain* cactus camel | night | water | Does it ever rain in a desert?
oceans | ocean | water fish salt* wave deep* sea | ship | life | Is ocean water salty?
snow | snow* | cold winter white ice flake* frozen | child | water | Is snow made of water?
thunderstorms | thunder* | lightning rain* cloud wind storm* sky | house | air | Is lightning dangerous?
earthquakes | earthquake | ground shak* plate fault* damage* | building | surface | Can an earthquake damage a house?
gravity | gravit* | force earth mass* fall* pull* object | apple | attraction | Is there gravity on the Moon?
electricity | electric* | current charge* power* energy light* wire | house | flow | Can electricity be dangerous?
magnets | magnet* | pole iron metal* field attract* north | toy | force | Do magnets attract wood?
batteries | batter* | energy charge* power* electric* store* | phone | chemical | Can some batteries be charged again?
computers | computer | data program* software screen internet | school | information | Do computers need electricity?
the internet | internet | network* web* information connect* | friend | world | Is everything on the internet true?
telephones | telephone phone | call* voice talk* sound* speak* | family | people | Can a telephone carry a voice?
books | book | read* page story stories author* learn* | child | knowledge | Can books teach us things?
libraries | librar* | book read* borrow* quiet* study* | child | knowledge | Do you have to buy books at a library?
schools | school | student* teach* learn* class* education | friend | knowledge | Do children learn to read at school?
guitars | guitar | string music* play* sound* note* song | hand | instrument | Does a guitar have strings?
painting | paint* | color* brush* canvas art* picture* create* | wall | beautiful | Do painters use brushes?
dancing | danc* | music* body move* rhythm* step* fun | friend | expression | Is dancing good exercise?
football | football | team ball goal player* game score* | friend | sport | Is football played by two teams?
swimming | swim* | water pool stroke* body muscle* exercise | summer | health | Is swimming good for your heart?
chess | chess | board king queen piece* player* strateg* | friend | game | Is chess a game for two people?
cooking | cook* | food heat* recipe* ingredient* | family | delicious | Is cooking at home cheaper than eating out?
bread | bread | flour yeast bak* dough oven wheat | butter | food | Is bread made with flour?
cheese | cheese | milk cow cream* flavor* age* dairy | bread | food | Is cheese made from milk?
tea | tea | leaf leaves hot drink* cup green | morning | water | Is tea a hot drink?
apples | apple | fruit tree sweet* red eat* juic* | school | healthy | Do apples grow on trees?
rice | rice | grain* asia* cook* field* food eat* | bowl | people | Is rice grown in water?
gardens | garden* | flower plant* soil water* grow* vegetable | friend | beautiful | Do gardens need water?
farms | farm* | crop animal* food grow* land field | morning | people | Do farms produce food?
cities | cit* | people building* street* park* busy | river | world | Do more people live in cities than in villages?
trains | train* | track* rail* station travel* passenger* engine | city | transportation | Do trains run on tracks?
airplanes | airplane plane | fly* wing* air* engine* pilot* sky | city | people | Can airplanes fly across an ocean?
ships | ship | sea* water ocean* sail* cargo* boat | wind | people | Are ships used to carry goods?
cars | car | engine* road* driv* wheel* fuel* speed* | family | people | Do all cars need gasoline?
bridges | bridge | river* cross* water road* build* steel | stone | people | Can a bridge be made of wood?
clocks | clock | time hour* minute* hand* tick* second* | wall | day | Does a clock measure time?
money | money | buy* bank* coin* spend* save* work* | family | people | Can money buy everything?
hospitals | hospital* | doctor* nurse* patient* sick* care health* | family | medical | Do hospitals treat sick people?
sleep | sleep* | rest* night* dream* body brain bed | child | health | Do children need more sleep than adults?
exercise | exercis* | body muscle* health* heart run* strong* | friend | physical | Is exercise good for the heart?
teeth | teeth tooth dental | brush* chew* mouth food dentist* | sugar | healthy | Should you brush your teeth every day?
the heart | heart* | blood pump* body oxygen beat* muscle* | love | organ | Does the heart pump blood?
sharks | shark | ocean fish teeth swim* predator* hunt* | fear | water | Are all sharks dangerous to people?
butterflies | butterfl* | wing* flower* caterpillar* insect* | summer | beautiful | Were butterflies once caterpillars?
recycling | recycl* | waste* plastic* paper* glass material* bin | school | environment | Can glass be recycled?
"""


def _topic(row: str) -> Topic:
    name, words, keywords, include, avoid, question = (cell.strip() for cell in row.split("|"))
    return Topic(name, tuple(words.split()), tuple(keywords.split()), include, avoid, question)


TOPICS = tuple(_topic(row) for row in _TABLE.strip().splitlines())
