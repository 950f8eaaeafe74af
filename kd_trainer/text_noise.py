"""Typing errors at a given rate: characters swapped, dropped, repeated, or replaced by one that looks alike."""

import random

# Characters that are easily taken for each other; a few hundred common ones, not a complete table.
LOOKALIKES = (
    "己已巳 未末 土士 日曰 人入八 大太犬 天夫无 干千于 王玉主 木本术 目且自 白百 田由甲申 刀力 九丸 贝见 午牛 "
    "毛手 水永冰 今令 兔免 鸟乌 候侯 拆折 晴睛 情清请 辨辩 历厉 泊伯 拔拨 戊戌戍 治冶 茶荼 喝渴 杨扬 圆园 城诚 "
    "密蜜 买卖 竞竟 徒徙 幕墓慕暮募 赢羸 崇祟 栗粟 券卷 孤狐 爪瓜 代伐 住往 体休 师帅 问间 处外 风凤 几儿 方万 "
    "元无 开井 办为 乒乓 名各 后石右 话活 析折 侍待 般船 股服 银很 涨张 跌迭 市巾 场扬 球求 队认 赛塞 胜姓 政攻 "
    "法去 院完 学字 校较 考老 试式 游旅 戏我 影景 星是 明朋 机杭 网冈 技枝 科料 价介 房户 楼搂 地他 产严 金全 "
    "基墓 货贷 车东 油抽 进近 退腿 高亭 低底 新亲 闻间 国园 中申 美羊 英央 法怯 日目 月用 年午 时肘 公分 司同 "
    "家字 民良 官宫 员贝 长张 部陪 报投 道首 记纪 者著 0Oo 1lI 5S 8B 2Z 6b 9gq uv nm ij ce hk rn ft pq wv ad"
).split()
SIMILAR = {}
for group in LOOKALIKES:
    for character in group:
        SIMILAR[character] = SIMILAR.get(character, "") + group.replace(character, "")


def noisy_text(text, rate, alphabet, generator):
    """
    `text` with errors: each of its characters is, with probability `rate`, swapped with the next one, dropped, repeated
    or replaced (all equally likely), by a look-alike where there is one, else by any character of `alphabet`.

    Args:
        text (`str`): Any.
        rate (`float`): In [0, 1].
        alphabet (`str`): At least one character.
        generator (`random.Random`): Draws.

    Returns:
        `str`; empty when every character is dropped.
    """
    characters = list(text)
    noisy = []
    position = 0
    while position < len(characters):
        character = characters[position]
        position += 1
        if generator.random() >= rate:
            noisy.append(character)
            continue
        error = generator.choice(("swap", "drop", "repeat", "replace"))
        if error == "swap" and position < len(characters):
            noisy += [characters[position], character]
            position += 1
        elif error == "repeat":
            noisy += [character, character]
        elif error != "drop":  # the last character has none to swap with
            noisy.append(generator.choice(SIMILAR.get(character, alphabet)))
    return "".join(noisy)


def add_noise(texts, rate, seed=0):
    """
    Every text with errors of its own, the same for the same `seed` whatever stands beside it.

    Args:
        texts (`list[str]`): Random characters are drawn from them, as often as they stand there.
        rate (`float`): Share of the characters that an error falls on, in [0, 1].
        seed (`int`, *optional*, defaults to 0).

    Returns:
        `list[str]`.

    Raises:
        `ValueError`: For a rate out of range.

    Example:

    ```python
    >>> add_noise(["股市大涨", "球队胜出"], rate=0.0)
    ['股市大涨', '球队胜出']

    ```
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}: it must be in [0, 1]")
    alphabet = "".join(texts) or " "
    return [noisy_text(text, rate, alphabet, random.Random(f"{seed} {row}")) for row, text in enumerate(texts)]
