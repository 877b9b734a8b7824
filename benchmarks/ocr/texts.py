"""What stands on a rendered line: identity numbers, names, dates, amounts, Latin words and Chinese addresses.

Nobody is meant: numbers, names and addresses are drawn at random. Every character is in the charset of PP-OCRv4
(`fonts.check_characters` verifies it) and in GB 2312, which all Chinese fonts cover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta

import numpy as np

Random = np.random.Generator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# GB 11643-1999: weights of the first 17 digits, 2^(17 - i) mod 11; the check character by the sum mod 11.
CHECK_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CHECK_CHARACTERS = "10X98765432"

PROVINCES = _words("11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65")
SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎"
    "余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
)
DOUBLE_SURNAMES = ("欧阳", "司马", "上官", "诸葛", "东方", "皇甫", "尉迟", "公孙", "慕容", "令狐", "夏侯", "司徒")
GIVEN = (
    "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀兰霞平刚桂英华玉萍红建国文辉力志鹏飞宇浩然子轩梓涵雨欣怡佳慧"
    "晓东海燕春梅凤琴丹云莉波斌峰博坤龙成康星光天达安岩中茂进林有坚和彪诚先敬震振壮会思群豪心邦承乐绍功松善厚庆"
    "民友裕河哲江昊旭阳俊凯晨睿泽瑞琳瑶婷雪蕾薇倩颖洁悦璐莹晶妍茜秋珊莎锦黛青婉娴瑾露瑜翠雅芝"
    "彬富顺信良义兴家祥新利清生元全胜学才发贵福仁永健世广启航嘉铭皓逸翰霖诗涵若曦宁馨菲岚彤"
)
CITIES = _words(
    "北京市 上海市 天津市 重庆市 杭州市 南京市 苏州市 成都市 武汉市 长沙市 西安市 郑州市 济南市 青岛市 沈阳市 "
    "大连市 长春市 哈尔滨市 石家庄市 太原市 合肥市 福州市 厦门市 南昌市 广州市 深圳市 珠海市 南宁市 海口市 "
    "昆明市 贵阳市 兰州市 西宁市 银川市 拉萨市 乌鲁木齐市 宁波市 温州市 无锡市 佛山市 东莞市 洛阳市 桂林市"
)
DISTRICTS = _words(
    "东城区 西城区 朝阳区 海淀区 丰台区 黄浦区 徐汇区 静安区 浦东新区 和平区 河西区 南开区 江北区 渝中区 西湖区 "
    "上城区 鼓楼区 玄武区 姑苏区 武侯区 锦江区 江岸区 武昌区 岳麓区 雁塔区 碑林区 金水区 历下区 市南区 沈河区 "
    "中山区 南关区 道里区 桥西区 小店区 蜀山区 台江区 思明区 东湖区 天河区 越秀区 福田区 南山区 香洲区 青秀区 "
    "五华区 云岩区 城关区"
)
ROADS = _words(
    "人民 中山 解放 建设 和平 新华 文化 胜利 长江 黄河 北京 南京 上海 青年 文三 延安 淮海 建国 光明 东风 红旗 "
    "迎宾 学府 科技 创业 滨江 环城 花园 幸福 友谊 团结 工业 体育 公园 金融 朝阳 健康 银河 梅花 桃园 柳树 石桥 "
    "清泉 白云 翠竹"
)
ROAD_KINDS = ("路", "街", "大道", "巷", "东路", "西路", "南路", "北路", "中路")
AGENCIES = ("公安局", "分局", "税务局", "人民法院", "市场监管局", "民政局", "车辆管理所", "出入境管理局")
FIRST_NAMES = _words(
    "Anna Ben Carla David Elena Felix Grace Henry Irene James Karen Lucas Maria Nina Oscar Paula Quentin Robert "
    "Sofia Thomas Ursula Victor Wendy Xavier Yvonne Zoe Michael Julia Peter Laura Andrew Emily Kevin Diana Hugo "
    "Bruno"
)
LAST_NAMES = _words(
    "Smith Johnson Brown Miller Davis Wilson Moore Taylor Clark Lewis Walker Young King Wright Hill Green Baker "
    "Nelson Schneider Fischer Weber Wagner Becker Hoffmann Keller Dubois Laurent Rossi Ferrari Garcia Lopez "
    "Silva Costa Jensen Larsen Novak Kowalski Tanaka Suzuki Kim Park Nguyen Singh Khan Ivanov Petrov Chen Wang"
)
WORDS = _words(
    "Address Airport Amount Apple Balance Bank Battery Boarding Bridge Budget Camera Capital Card Centre "
    "Certificate Channel Charge Choice Client Code Company Contract Copper Country Credit Custom Date Delivery "
    "Deposit Design Device Digital Discount Document Dollar Double Energy Engine Express Factory Family Final "
    "Flight Forest Future Garden Gate Global Gold Group Guest Harbour Health Holiday Hotel House Identity Import "
    "Index Invoice Island Journey Kitchen Label Letter Licence Light Limited Market Material Medical Member "
    "Metal Model Monday Motor Museum Nation Network Night Number Office Order Orange Package Paper Passport "
    "Payment People Pepper Permit Phone Picture Planet Power Price Product Public Quality Quantity Railway "
    "Receipt Record Region Report River Room School Season Service Signal Silver Simple Station Street Summer "
    "Supply Surface Table Ticket Total Tower Travel Union Unit Valid Value Village Voucher Water Weight Window "
    "Winter Wood World Yellow Zone"
)
STREETS = ("Street", "Road", "Avenue", "Lane", "Square", "Drive", "Court", "Park")
CAPITALS = "零壹贰叁肆伍陆柒捌玖"  # digits as cheques have them


def identity_number(random: Random) -> str:
    """18 characters of GB 11643: region (6), date of birth (8), serial number (3), check character.

    >>> identity_number(np.random.default_rng(0))
    '611915196101103080'
    """
    region = _pick(random, PROVINCES) + f"{random.integers(1, 30):02}{random.integers(1, 30):02}"
    born = date(1940, 1, 1) + timedelta(days=int(random.integers(0, 365 * 78)))
    digits = f"{region}{born:%Y%m%d}{random.integers(1, 1000):03}"
    return digits + check_character(digits)


def check_character(digits: str) -> str:
    """The 18th character of an identity number, by GB 11643-1999 (ISO 7064, MOD 11-2), from the first 17 digits.

    >>> check_character("11010519491231002")  # the standard's own example
    'X'
    """
    total = sum(weight * int(digit) for weight, digit in zip(CHECK_WEIGHTS, digits, strict=True))
    return CHECK_CHARACTERS[total % 11]


def chinese_name(random: Random) -> str:
    surname = _pick(random, DOUBLE_SURNAMES) if random.random() < 0.06 else _pick(random, SURNAMES)
    return surname + "".join(_pick(random, GIVEN) for _ in range(1 if random.random() < 0.25 else 2))


def date_text(random: Random) -> str:
    day = date(1950, 1, 1) + timedelta(days=int(random.integers(0, 365 * 95)))
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{day:%Y-%m-%d}",
        lambda: f"{day:%Y.%m.%d}",
        lambda: f"{day:%Y/%m/%d}",
        lambda: f"{day:%d/%m/%Y}",
        lambda: f"{day.year}年{day.month}月{day.day}日",
        lambda: f"{day:%Y}年{day:%m}月{day:%d}日",
        lambda: f"{day:%Y.%m.%d}-{day.year + int(_pick(random, ('5', '10', '20')))}{day:.%m.%d}",
        lambda: f"{day:%Y.%m.%d}-长期",
        lambda: f"{day:%Y%m%d}",
    )
    return forms[random.integers(len(forms))]()


def amount(random: Random) -> str:
    cents = int(10 ** random.uniform(2, 8))
    value, whole = cents / 100, cents // 100
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"￥{value:,.2f}",
        lambda: f"{value:.2f}元",
        lambda: f"{whole:,}元",
        lambda: f"${value:,.2f}",
        lambda: f"{value:,.2f}",
        lambda: f"EUR{value:,.2f}",
        lambda: f"-{value:.2f}",
        lambda: f"{random.integers(1, 1000) / 10:.1f}%",
        lambda: _in_capitals(max(1, whole % 10_000)) + "元整",
    )
    return forms[random.integers(len(forms))]()


def latin(random: Random) -> str:
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{_pick(random, FIRST_NAMES)} {_pick(random, LAST_NAMES)}",
        lambda: _pick(random, WORDS),
        lambda: f"{_pick(random, WORDS)} {_pick(random, WORDS).lower()}",
        lambda: f"{random.integers(1, 400)} {_pick(random, WORDS)} {_pick(random, STREETS)}",
        lambda: _pick(random, LAST_NAMES).upper(),
        lambda: f"{_pick(random, WORDS).upper()} {random.integers(1, 1000)}",
        lambda: f"{_pick(random, FIRST_NAMES).lower()}@{_pick(random, WORDS).lower()}.com",
    )
    return forms[random.integers(len(forms))]()


def address(random: Random) -> str:
    """At most 14 characters: longer lines would be squeezed too much to be read at 48 x 320."""
    road = _pick(random, ROADS) + _pick(random, ROAD_KINDS)
    forms: tuple[Callable[[], str], ...] = (
        lambda: _pick(random, CITIES) + _pick(random, DISTRICTS),
        lambda: f"{_pick(random, DISTRICTS)}{road}{random.integers(1, 999)}号",
        lambda: f"{road}{random.integers(1, 999)}号",
        lambda: f"{random.integers(1, 40)}栋{random.integers(1, 6)}单元{random.integers(101, 2600)}室",
        lambda: f"{road}{random.integers(1, 300)}号{random.integers(1, 30)}幢",
        lambda: _pick(random, CITIES) + _pick(random, AGENCIES),
    )
    return forms[random.integers(len(forms))]()


KINDS: Mapping[str, tuple[Callable[[Random], str], float]] = {  # kind -> what makes its texts, share of all lines
    "identity": (identity_number, 0.25),
    "name": (chinese_name, 0.20),
    "date": (date_text, 0.15),
    "amount": (amount, 0.15),
    "latin": (latin, 0.13),
    "address": (address, 0.12),
}


def draw(random: Random) -> tuple[str, str]:
    """(kind, text) of one line."""
    kinds = list(KINDS)
    kind = kinds[random.choice(len(kinds), p=[share for _, share in KINDS.values()])]
    return kind, KINDS[kind][0](random)


def is_chinese(text: str) -> bool:
    """Whether a text needs a font with Chinese characters."""
    return any(ord(character) > 0x2000 for character in text)


def characters() -> str:
    """Every character that a text can hold, sorted."""
    listed = [SURNAMES, GIVEN, CAPITALS, "0123456789X.,-/￥$%@ EURcom年月日长期元整拾佰仟号栋单元室幢"]
    for words in (DOUBLE_SURNAMES, CITIES, DISTRICTS, ROADS, ROAD_KINDS, AGENCIES):
        listed += words
    for words in (FIRST_NAMES, LAST_NAMES, WORDS, STREETS):
        listed += [form for word in words for form in (word, word.lower(), word.upper())]
    return "".join(sorted(set("".join(listed))))


def _in_capitals(value: int) -> str:
    """1 to 9999 as cheques have it, with one zero for a gap: 1005 -> 壹仟零伍."""
    digits, text, gap = f"{value:04}", "", False
    for digit, unit in zip(digits, ("仟", "佰", "拾", ""), strict=True):
        if digit == "0":
            gap = bool(text)
            continue
        text += ("零" if gap else "") + CAPITALS[int(digit)] + unit
        gap = False
    return text


def _pick(random: Random, items: str | tuple[str, ...]) -> str:
    return items[random.integers(len(items))]
