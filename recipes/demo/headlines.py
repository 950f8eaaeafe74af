"""The demonstration data set: invented Chinese news headlines in ten categories, written by a seeded grammar.

Run:
    python recipes/demo/headlines.py

It rewrites train.tsv, validation.tsv and test.tsv in its own folder (one `label<TAB>text` per line, no header).

A headline's label is the category of the event it reports. About three headlines in four stay within one category.
Most of the others mention a second category as well, and word order and function words say which of the two is the
news: "刚买下临湖别墅，桑以棠又夺得赛艇联赛冠军" is 体育, "刚夺得赛艇联赛冠军，桑以棠又买下临湖别墅" is 房产. The
characters are nearly the same, so a bag of n-grams is torn where a model that reads the order is not. A small share is
ambiguous or mislabelled, as in any real collection. All names of people, places, companies and works are composed at
random; a likeness to real ones is chance.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

MIN_LENGTH, MAX_LENGTH = 10, 25

# Shares of the kinds of headline that need their own treatment; the rest mentions two categories.
PLAIN_SHARE = 0.75
OWN_SHARE = 0.50  # of the plain ones, those with a pattern of their category
AMBIGUOUS_SHARE = 0.012
MISLABELLED_SHARE = 0.012

SLOT = re.compile(r"{(\w+)}")


# Slots that every category may use. Names are put together from rare characters, so that most of them occur once or
# twice and cannot be learned by heart; titles may belong to a film, a game or a book alike.
SHARED = {
    "name": "{surname}{given1}{given2} {surname}{given1}{given2} {surname}{given2}",
    "surname": "闻 柏 简 骆 纪 舒 温 封 楚 祁 岑 虞 桑 宫 尹 景 卓 褚 樊 梅 覃 阮 苗 鹿 盛 隋 晏 翟 柴 瞿",
    "given1": "以 知 星 望 予 砚 若 听 临 屿 景 书 元 亦 之 云 青 怀 念 向 初 行 问 思",
    "given2": "川 禾 舟 棠 岚 澈 澜 笙 桐 远 宁 遥 朔 溪 野 白 蓝 杉 微 洲 麦 晴 笛 帆",
    "town": "{town1}{town2}",
    "town1": "霁 栎 筱 皓 翎 檀 琅 鹭 棠 澜 苇 萤 岚 槿 芷 砚 枫 鲤",
    "town2": "川 溪 桥 泽 浦 坪 洲 湖 港 渡 原 湾",
    "brand": "{brand1}{brand2}",
    "brand1": "曜 翎 瀚 诺 岚 橙 沐 棱 珞 茉 栎 拾 逐 鲸 麓 隼 泊 穹",
    "brand2": "禾 迪 朗 图 梵 驿 格 森 维 桐 锐 舟 野 岸 贝 拓",
    "title": "《{title1}{title2}》",
    "title1": "雾岛 长夜 春山 逐光 星河 旧梦 北岸 晚风 白塔 夏末 铁马 蓝鲸 纸鸢 云端 潮汐 孤城 赤月 麦浪 千灯 雪线",
    "title2": "来信 之约 迷踪 物语 行纪 传说 往事 回响 计划 列车 少年 密码 奇谭 边境",
    "n": "2 3 4 5 6 7 8 9",
    "cn": "两 三 四 五 六 七 八 十",
    "nn": "12 15 16 18 20 24 26 28 30 32 36 40 45 48 50 56 60 64 72 80 88 90",
    "years": "11 12 14 15 16 18 20 21 25 30",
    "pct": "{n}% {nn}% {n}.{n}%",
    "quarter": "一季度 二季度 三季度 四季度 上半年 前三季度 全年",
    "month": "1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
    "day": "周一 周二 周三 周五 周末 今日 明日 本周 下周 月底",
    "color": "墨绿 雾蓝 奶白 焦糖 酒红 浅灰 米色 藏青 裸粉 柠黄",
    "lately": "近日 日前 昨日 今日",
    "group": "年轻人 {town}人 退休老人 上班族 大学生 单身青年 {town}市民 新手父母 {town}白领 小镇青年 90后 00后",
    "who": "{name} {name} {name} {name} {town}老人 {town}小伙 90后姑娘 {town}姑娘",
    "company": "{brand}集团 {brand}公司 {brand}股份 {brand}控股 {brand}",
    "tail": "引发热议 网友点赞 细节曝光 引来围观 登上热搜 背后有故事 你怎么看？ 影响几何？",
    "launch": "亮相 引发热议 今日亮相 {day}公布 {day}揭晓 来了 引发关注 首次公开 引来围观 受关注",
}

# For each category: "headline" holds whole headlines about it alone; "act" what a person did and "move" what a company
# did, "topic" what people follow, "thing" what can be launched, "job" what a person is, and "firm" a company's name.
# The last six are what headlines about two categories are made of.
CATEGORIES = {
    "体育": {
        "headline": """
            {club}{score}击败{club}豪取{cn}连胜
            {event}：{name}逆转夺冠
            {club}客场{loss}惜败，主帅{name}：防守要反思
            {name}伤愈复出，{club}迎来{cn}连胜
            官方：{club}签下边锋{name}
            {name}打破尘封{years}年的{sport}纪录
            {event}{day}开战，{nn}支队伍争冠
            {name}首节独得{nn}分，{club}主场大胜
            {town}马拉松{day}鸣枪，{n}万跑者参赛
            争议判罚！{club}{loss}憾负{club}
            {club}换帅：{name}接过教鞭
            {sport}国家队公布集训名单，{name}领衔
            {event}抽签揭晓，{club}落入死亡之组
            绝杀！{name}补时破门助{club}晋级
            身价翻倍，{club}为{name}开出{n}年合同
            {name}宣布退役：{sport}给了我一切""",
        "act": """夺得{event}冠军 打破{sport}全国纪录 重返{sport}赛场 随队晋级{event}四强 执教{club} 加盟{club}
            入选{sport}集训队 带伤完成{event} 跑完{town}马拉松 摘得{sport}银牌 租借至{club} 获评{event}最佳新人
            执裁{event}决赛 在{town}体育馆夺金 率{club}逆转取胜 创造{sport}个人最好成绩""",
        "move": """冠名{event} 组建女子{sport}队 承办{event} 赞助{club} 兴建{sport}训练基地 申办{event}
            送少年{sport}队出征 重奖{sport}冠军 入主{club} 买断{event}转播权 翻修{club}主场""",
        "topic": "足球联赛 夜跑 羽毛球 攀岩 马拉松 乒乓球 滑雪 飞盘 游泳 骑行 篮球赛 冰球 射箭",
        "thing": "运动会 足球杯赛 马拉松 健身操 篮球邀请赛 拳击赛 骑行赛 训练营 接力赛",
        "job": "足球教练 篮球国手 马拉松冠军 门将 体操运动员 赛艇选手 乒乓名将 网球裁判 球探 游泳教练",
        "firm": "{brand}体育",
        "sport": "足球 篮球 排球 羽毛球 乒乓球 赛艇 攀岩 田径 游泳 冰球 击剑 射箭 体操 网球 跳水",
        "event": "{sport}联赛 {sport}锦标赛 {sport}公开赛 {sport}邀请赛 {town}{sport}赛 {sport}巡回赛",
        "club": "{town}{mascot}队 {town}{mascot} {town}队",
        "mascot": "飞鹰 雪豹 海狼 猎隼 赤狐 白鲨 黑熊 蛟龙",
        "score": "2比1 3比1 3比2 1比0 2比0 4比1 3比0",
        "loss": "1比2 1比3 2比3 0比1 0比2",
    },
    "财经": {
        "headline": """
            {anyfirm}{quarter}净利润同比增长{pct}
            {brand}股价{day}大跌{pct}，市值蒸发{nn}亿
            {anyfirm}拟募资{nn}亿元冲刺上市
            两市震荡收涨，{sector}板块领涨
            {sector}板块走强，{brand}涨停
            {brand}银行下调存款利率{n}个基点
            {month}居民消费价格同比上涨0.{n}%
            {anyfirm}拟{nn}亿元收购{brand}{pct}股权
            黄金价格创{n}年新高，投资者该怎么办？
            {brand}基金：{quarter}看好{sector}板块
            人民币中间价{day}上调{nn}个基点
            {brand}集团预亏{nn}亿元，收监管问询函
            理财产品收益跌破{n}.{n}%，储户转向国债
            {sector}行业{quarter}融资额下滑{pct}
            {anyfirm}发盈利预警，机构下调评级
            原油期货{day}收涨{n}.{n}%，黄金走低""",
        "act": """增持{brand}股份 清仓黄金基金 出任{brand}银行行长 抄底原油期货 募资{nn}亿元设立基金 申购新股中签
            认购{town}地方债 定投{brand}基金{n}年 炒股亏掉{nn}万元 转让{brand}{pct}股权 存入{nn}万元大额存单
            领到{brand}股票分红 做空{brand}股票 质押{brand}股权融资 买国债获利{nn}万元""",
        "move": """发行{nn}亿元债券 回购{nn}亿元股份 公布{quarter}财报 启动上市辅导 引入险资入股 下调全年盈利预期
            设立并购基金 向股东派发红利 清偿到期债务 获银行授信{nn}亿元 终止{nn}亿元定增""",
        "topic": "基金定投 股票 国债 黄金理财 外汇 大额存单 期货 养老保险 可转债 数字货币 股指",
        "thing": "基金 债券 理财产品 保险 信用卡 股票指数 信托产品 存单 消费贷",
        "job": "基金经理 银行行长 股评人 外汇交易员 理财顾问 审计师 上市公司董秘 投行高管 经济学家 保险经纪",
        "firm": "{brand}银行",
        "sector": "游戏 影视 地产 家电 教育 芯片 服装 体育 白酒 新能源 券商 机器人 家具 美妆",
    },
    "房产": {
        "headline": """
            {town}{month}二手房成交量环比升{pct}
            {town}新盘开盘{n}小时售罄，单价{n}万起
            {town}一宗地块{nn}轮竞价，溢价{pct}成交
            首付两成起！{town}下调房贷利率
            {brand}花园交房延期，业主讨说法
            {town}公积金贷款额度提至{nn}万元
            买房还是租房？{town}租金连涨{cn}个月
            {anyfirm}{nn}亿元拿下{town}湖景地块
            {town}学区房降温，业主降价{nn}万难出手
            {anyfirm}旗下{town}楼盘直降{nn}万促销
            {nn}平米小户型受捧，{town}楼市回暖
            {town}共有产权房{day}摇号，{nn}人抢一套
            实探{brand}府样板间：得房率不足{nn}%
            毗邻体育馆，{town}老破小涨价{pct}
            {town}法拍别墅{nn}万元起拍，无人出价
            {town}写字楼空置率升至{pct}""",
        "act": """买下{town}湖景别墅 挂牌出售{town}旧居 全款购入{town}大平层 抢到{town}共有产权房 退掉{town}期房
            还清{years}年房贷 认购{town}新盘 拿到回迁房钥匙 降价{nn}万卖掉学区房 签下{town}商铺租约 在{town}首付买房
            申请到公积金房贷 租下{town}整栋公寓 拍下{town}法拍房 把{town}老宅过户给女儿""",
        "move": """竞得{town}住宅地块 加推{town}新盘 打折促销存量房 退回{town}商办用地 交付{nn}栋回迁楼 运营长租公寓
            上调二手房挂牌价 托管{town}写字楼 开放湖景样板间 收购{town}烂尾楼 降价清盘{town}别墅""",
        "topic": "看房 二手房 新楼盘 样板间 长租公寓 学区房 法拍房 别墅 海景房 期房 房贷 商铺",
        "thing": "楼盘 公寓 别墅 住宅小区 写字楼 样板间 商铺 湖景房 安置房",
        "job": "房产中介 售楼员 开发商 包租公 地产高管 二房东 楼盘销冠 物业经理 看房顾问",
        "firm": "{brand}置业",
    },
    "家居": {
        "headline": """
            {nn}平米小户型装修：{spot}收纳多出一倍
            {furniture}怎么选？{n}个尺寸要记牢
            {color}墙面配原木{furniture}，小家暖意十足
            {spot}油污难清理？{n}招轻松搞定
            {brand}智能{furniture}{day}开售，{nn}天包换
            实木还是板材？{furniture}选购{n}大误区
            甲醛超标{n}倍，{brand}地板被召回
            阳台变花园：{name}的{n}步改造法
            {color}窗帘配{color}地毯，卧室层次拉满
            {spot}返潮怎么办？{name}：{n}处要防水
            {anyfirm}智能门锁上市，忘带钥匙不用愁
            换季收纳：{nn}平米的家，{furniture}这样打理
            {town}家博会{day}开幕，环保{furniture}唱主角
            马桶、花洒怎么挑？{name}教你{n}招
            {furniture}选购指南：{n}点比颜色重要
            {name}的家：{color}餐桌撑起整个餐厅""",
        "act": """翻新老屋厨房 给客厅换上{color}地毯 自制实木餐桌 把阳台改成小花园 装上智能马桶 定制整墙衣柜
            淘来{color}中古沙发 用旧木箱做茶几 给卧室重刷{color}墙漆 打造零甲醛儿童房 巧改{n}平米卫生间
            用收纳盒理清衣帽间 换掉漏水地板 拆掉客厅电视墙 给书房装上{color}窗帘""",
        "move": """推出智能衣柜 召回问题沙发 上新{color}布艺沙发 改良实木地板工艺 开设整装体验馆 量产无胶床垫
            展出极简厨房 研制除醛墙漆 上门保养真皮沙发 升级全屋收纳方案 上架{color}餐桌椅""",
        "topic": "软装 收纳 实木家具 布艺沙发 阳台花园 旧物改造 手工地毯 榻榻米 厨具 床品 全屋定制 智能马桶",
        "thing": "沙发 地毯 餐桌 衣柜 壁纸 吊灯 床品 书架 窗帘 茶几",
        "job": "软装设计师 老木匠 收纳师 家具店主 油漆工 窗帘店老板 装修工长 家具修复师 地板工",
        "firm": "{brand}家居",
        "spot": "厨房 客厅 卫生间 阳台 卧室 玄关 书房 餐厅",
        "furniture": "沙发 书桌 衣柜 床垫 餐桌 地板 窗帘 鞋柜 橱柜 茶几",
    },
    "教育": {
        "headline": """
            {town}大学新增{major}专业，{month}招生
            {town}高考{day}开考，{n}万考生赴考
            考研国家线公布：{major}上涨{n}分
            {town}小学推行课后托管，家长点赞
            中考改革：{town}体育分值提至{nn}分
            {town}中学禁带手机进课堂，你支持吗？
            {town}大学食堂降价，新生报到先领饭卡
            {name}老师支教{years}年，教出{nn}名大学生
            作文题引热议：{title}该怎么写？
            {town}大学宿舍装空调，学生：终于来了
            高考填志愿，{major}专业该不该报？
            晚{n}个月上小学会落后吗？{town}老师这样说
            {major}专业就业率达{nn}%，家长咨询忙
            {town}幼儿园招生计划公布，增{nn}个班
            教辅涨价{pct}，{town}家长直呼买不起
            {town}中学开设{major}选修课""",
        "act": """考上{town}大学研究生 捐建乡村图书馆 拿到博士学位 开设大学公选课 辅导女儿备战高考 编写小学语文课本
            支教{n}年归来 通过教师资格考试 走进中学课堂讲课 在{town}大学旁听 拿下全额奖学金 出任{town}中学校长
            为新生上开学第一课 考研二战上岸 收到{town}大学录取书""",
        "move": """捐建乡村小学 开办暑期夏令营 设立大学奖学金 编写职校教材 停办学科培训班 上线考研网课 共建职业学院
            资助{nn}名高考生 培训乡村教师 招收定向委培生 接管{town}民办中学""",
        "topic": "考研 网课 夜校 研学 留学 奥数 自习室 公开课 职业教育 家教 书法课 高考",
        "thing": "选修课 教材 公开课 夏令营 期末试卷 学生社团 校本课程 毕业典礼 培训班",
        "job": "班主任 大学教授 高考状元 中学校长 语文老师 在读博士 考研名师 支教老师 幼儿园园长",
        "firm": "{brand}教育",
        "major": "电竞 人工智能 金融 服装设计 影视编导 体育管理 室内设计 法学 机器人 房地产 播音 考古",
    },
    "科技": {
        "headline": """
            {anyfirm}发布{n}纳米芯片，能效提升{pct}
            {brand}折叠屏手机曝光：{n}摄加持
            {town}大学团队研制出柔性电池
            {brand}手机系统升级，续航提升{pct}
            {town}大学{name}团队发现新型超导材料
            人形机器人{day}进厂，一天分拣{nn}万件
            {brand}大模型开源，参数达{nn}亿
            {nn}颗卫星一箭发射，{brand}星座组网
            {brand}手机{day}开售，{n}分钟售空
            无人机送药上山，{town}只需{nn}分钟
            天文学家{name}观测到{nn}亿光年外星系
            {anyfirm}自动驾驶路测突破{nn}万公里
            处理器漏洞曝光，{brand}连夜发补丁
            量子计算新突破：{name}团队实现{nn}比特
            用脑电波打字？{brand}展示脑机接口
            {brand}眼镜拆解：{n}颗国产芯片""",
        "act": """研制出{n}纳米芯片 发明折叠屏手机 开源{nn}亿参数大模型 试飞载人无人机 造出会跳舞的机器人
            展示脑机接口样机 发现新型超导材料 操控卫星变轨 破解量子加密算法 修复手机系统漏洞 演示全息通话
            申请{nn}项芯片专利 观测到未知小行星 攻克激光雷达难题 写出开源操作系统""",
        "move": """流片{n}纳米芯片 开源{nn}亿参数大模型 试飞货运无人机 量产人形机器人 发射遥感卫星 推送手机系统升级
            建成量子实验室 演示自动驾驶 上线云端算力平台 攻克固态电池难题 首发{n}摄折叠屏手机""",
        "topic": "机器人 无人机 大模型 芯片 虚拟现实 量子计算 天文观测 3D打印 编程 智能手表 航天 脑机接口",
        "thing": "机器人 无人机 手机应用 芯片 智能手表 VR头显 卫星 大模型 折叠屏手机",
        "job": "程序员 芯片工程师 航天员 天文学家 算法专家 机器人博士 数据科学家 网络安全专家 卫星测控员",
        "firm": "{brand}科技",
    },
    "时尚": {
        "headline": """
            {color}风衣成今秋必备，{n}种搭法显高
            {town}时装周落幕：{color}成流行色
            {brand}春夏系列发布，廓形西装回归
            {color}口红怎么涂？{n}步画出高级感
            {name}演绎{brand}高定，{color}长裙吸睛
            小个子穿搭：{color}半裙配{color}衬衫显腿长
            {brand}新款手袋全球限量{nn}只
            {month}护肤：敏感肌避开这{n}种成分
            {town}红毯造型盘点：{color}礼服成大热
            {name}登{brand}大片，短发造型利落
            {nn}款{brand}香水推荐，清爽不撞香
            {brand}与设计师{name}推出联名成衣
            运动鞋配{color}西装？{name}带火混搭风
            复古妆容回潮，{brand}{color}眼影卖断货
            珠宝怎么叠戴？{name}教你{n}个公式
            {color}针织衫配牛仔裤，温柔又显瘦""",
        "act": """登上时尚杂志封面 走秀{town}时装周 穿{color}高定礼服走红毯 设计春夏成衣系列 晒出{color}穿搭
            推出同名口红 剪短发换新造型 混搭{color}风衣出街 复刻复古妆容 为香水拍摄大片 挑战{color}眼妆 压轴高定大秀
            创立珠宝品牌 亲手缝制{color}旗袍 开出古着店""",
        "move": """发布春夏成衣系列 签约超模走秀 推出{color}限量口红 举办高定大秀 上新{color}针织衫 请设计师缝制礼服
            首推中性香水 包下时装周压轴秀 复刻经典手袋 预告秋冬流行色 主打{color}风衣""",
        "topic": "高定礼服 香水 美妆 汉服 珠宝 复古穿搭 口红 美甲 时装周 手袋 护肤 古着",
        "thing": "连衣裙 香水 口红 珠宝 时装秀 手袋 风衣 眼影盘 针织衫",
        "job": "超模 时装设计师 美妆博主 造型师 调香师 珠宝匠人 穿搭博主 时尚主编 裁缝",
        "firm": "{brand}服饰",
    },
    "时政": {
        "headline": """
            {town}市政府常务会审议{bill}
            {bill}公开征求意见，{day}截止
            {town}市召开防汛工作会议
            {bill}{day}起施行，违者最高罚{n}万元
            {town}市人大表决通过{bill}
            政务服务“一网通办”在{town}上线
            {name}当选{town}市副市长
            {town}市长{name}调研{place}
            外交部{day}举行招待会，{nn}国使节出席
            {town}市晒民生清单：{nn}件实事已办结
            发言人{name}：{bill}年内出台
            {town}两会开幕，{nn}名代表提交议案
            {town}县干部走访{place}，现场办公
            {n}部门联合整治{place}周边环境
            {town}市公示{nn}名拟任干部
            {town}市举行{bill}听证会""",
        "act": """当选{town}市人大代表 列席市政府常务会 提交民生议案 走访防汛一线 在听证会上发言 就{bill}提建议
            获聘政府参事 宣讲基层治理政策 调研乡镇便民中心 主持市政府发布会 获任{town}副市长 接待群众来访
            赴任驻外领事 督办政协提案 在政协会上建言""",
        "move": """参与起草{bill} 提交立法建议 派员列席听证会 响应限塑新规 承办政务开放日 协办外事招待会
            承建政务服务大厅 接受市政府督查 配合防汛应急演练 向人大递交民生建议 对{bill}提意见""",
        "topic": "听证会 政务公开 民生议案 基层治理 外交礼宾 限塑新规 垃圾分类条例 普法宣传 社区议事 政府工作报告",
        "thing": "听证会 条例草案 专项规划 政府白皮书 新闻发布会 民生议案 政务大厅 行动方案 议事会",
        "job": "人大代表 副市长 外交官 新闻发言人 政协委员 街道办主任 驻村书记 政府参事 镇长",
        "firm": "{town}市政府",
        "bill": "网络游戏管理办法 物业管理条例 校园安全条例 全民健身条例 演出管理办法 住房租赁条例 家装监管办法",
        "place": "校园 体育场馆 影视基地 科技园区 建材市场 老旧小区 服装市场 网吧 金融街 便民中心",
    },
    "游戏": {
        "headline": """
            {title}手游{day}公测，预约破{nn}万
            新版本来袭：{title}上线{cn}人副本
            {brand}战队{score}夺得{title}联赛冠军
            {title}停服引不满，玩家要求退款
            主机大作{title}通关需{nn}小时
            {title}制作人{name}：续作画面全面升级
            {title}新皮肤上架，玩家：肝不动了
            新手必看！{title}{n}个隐藏技巧
            {brand}网游获版号，{month}开启内测
            {title}更新后掉帧，官方致歉送道具
            电竞选手{name}转会{brand}战队
            抽卡{nn}次不中？{title}概率引质疑
            {title}评测：剧情满分，战斗平平
            {brand}游戏展{day}开幕，{nn}款新作试玩
            {name}直播速通{title}，刷新世界纪录
            {title}手游上线防沉迷，夜间禁玩""",
        "act": """通关{title}隐藏关卡 拿下电竞总决赛MVP 组建电竞战队 冲上国服第一 直播速通{title} 抽到绝版皮肤
            充值{nn}万买装备 公布新作{title}玩法 设计{title}副本 出任{title}手游制作人 带公会首杀首领 内测{title}手游
            转会{brand}电竞战队 卖掉满级账号 集齐全部卡牌皮肤""",
        "move": """公测手游{title} 停运网游{title} 拿到新游版号 关闭{title}服务器 成立电竞俱乐部 更新{title}副本
            升级防沉迷系统 首曝主机大作{title} 下调抽卡概率 举办玩家嘉年华 重制经典单机{title}""",
        "topic": "手游 电竞 网游 卡牌对战 主机游戏 抽卡 打副本 开黑 沙盒游戏 单机大作 云游戏 剧情解谜",
        "thing": "手游 网游 电竞赛 主机游戏 副本 卡牌游戏 游戏皮肤 单机大作 玩家嘉年华",
        "job": "电竞选手 游戏主播 手游策划 公会会长 游戏原画师 速通高手 网游制作人 电竞解说 游戏代练",
        "firm": "{brand}游戏",
        "score": "2比1 3比1 3比2 2比0 4比1 3比0",
    },
    "娱乐": {
        "headline": """
            电影{title}定档{month}，{name}领衔主演
            {title}票房破{n}亿，导演{name}发文致谢
            {name}新专辑{title}{day}上线
            {name}官宣结婚，圈中好友送祝福
            综艺{title}{day}收官，{name}泪洒舞台
            {name}与{name}合作新剧{title}
            {title}首曝预告，{name}演反派
            {name}演唱会{town}站门票秒空
            电视剧{title}收视破{n}，追剧党催更
            {name}凭{title}获封最佳新人
            {name}否认恋情：只是好朋友
            {title}片场照曝光，{name}骑马吊威亚
            导演{name}：拍{title}等了{n}年
            粉丝接机{name}，现场唱起{title}
            {name}加盟脱口秀，首期调侃自己
            影视基地忙不停，{nn}个剧组同时开拍""",
        "act": """主演新片{title} 发行首张专辑 加盟综艺{title} 官宣恋情 客串古装剧{title} 执导悬疑片 获封电影节新人奖
            举办{town}演唱会 唱响{title}主题曲 杀青古装剧 在综艺里泪洒舞台 公开婚讯 登台说相声 首演话剧{title}
            出演网剧反派""",
        "move": """投拍古装剧{title} 定档贺岁片 筹备选秀综艺 签下新人歌手 制作音乐真人秀 出品悬疑网剧 曝光{title}预告片
            承办群星演唱会 撤档喜剧片{title} 公布新剧主演阵容 买下{title}改编权""",
        "topic": "综艺 偶像剧 演唱会 脱口秀 相声 选秀 贺岁片 话剧 追星 悬疑网剧 音乐节 古装剧",
        "thing": "电影 综艺 电视剧 演唱会 纪录片 音乐剧 脱口秀 网剧 贺岁片",
        "job": "影后 流行歌手 综艺导演 相声演员 影视编剧 选秀偶像 喜剧演员 综艺主持人 金曲歌王 武打替身",
        "firm": "{brand}影业",
    },
}
LABELS = tuple(CATEGORIES)

# Headlines about two categories. A slot ending in _a belongs to the news, one ending in _b to what is only mentioned;
# every kind has patterns with either of them in front, so that the place alone does not settle it either.
FRAMES = {
    "act": """
        {act_b}的{subject}{act_a}
        因{act_b}走红的{subject}{act_a}
        刚{act_b}，{subject}又{act_a}
        {subject}{act_b}后{act_a}
        继{act_b}之后，{subject}又{act_a}
        {act_b}{cn}年后，{subject}{act_a}
        误传{act_b}，{subject}其实{act_a}
        没能{act_b}，{subject}转而{act_a}
        {subject}{act_a}，此前曾{act_b}
        {subject}{act_a}，此前曾因{act_b}走红""",
    "move": """
        因{move_b}受关注的{corp}{move_a}
        刚{move_b}，{corp}又{move_a}
        {corp}{move_b}后{move_a}
        继{move_b}之后，{corp}又{move_a}
        {move_b}受阻，{corp}转而{move_a}
        不再{move_b}，{corp}改为{move_a}
        {corp}{move_a}，此前曾{move_b}""",
    "thing": """
        {town}{topic_b}主题{thing_a}{launch}
        国内首个{topic_b}主题{thing_a}{launch}
        {town}{topic_b}题材{thing_a}{launch}
        聚焦{topic_b}，{town}{thing_a}{launch}
        {topic_b}元素融入{thing_a}，{town}人怎么看？
        {town}{thing_a}借{topic_b}走红，{tail}
        {town}{thing_a}刮起{topic_b}风，{tail}""",
    "topic": """
        比起{topic_b}，{group}更爱{topic_a}
        {topic_b}遇冷，{group}转向{topic_a}
        告别{topic_b}，{group}迷上{topic_a}
        {topic_b}不香了？{group}热衷{topic_a}
        不聊{topic_b}聊{topic_a}：{group}的新话题
        {group}更爱{topic_a}，{topic_b}遇冷""",
    "job": """
        {job_b}{name}转行当{job_a}
        {town}{job_b}跨界当上{job_a}，{tail}
        不做{job_b}，{name}改当{job_a}
        {job_b}{name}被聘为{job_a}
        从{job_b}到{job_a}，{name}用了{n}年
        曾是{job_b}的{name}当上{job_a}
        {job_a}{name}自曝曾是{job_b}""",
}
# How often each kind of frame is drawn, of 100.
FRAME_WEIGHTS = {"act": 44, "move": 28, "thing": 12, "topic": 8, "job": 8}

# Headlines about one category whose patterns are common to all. Where somebody of another category is named, what was
# done decides, not who did it.
PLAIN_FRAMES = """
    {subject}{act_a}
    {subject}{lately}{act_a}
    {subject}{act_a}，{tail}
    {corp}{move_a}
    {corp}{lately}{move_a}
    {corp}{move_a}，{tail}
    {town}新推{thing_a}{launch}
    {town}{thing_a}{launch}，{group}点赞
    {topic_a}火了，{group}成主力
    {town}{job_a}{name}的一天：忙到深夜
    {job_a}{name}的{years}年：一件事做到底"""

# Headlines that two annotators would label differently.
AMBIGUOUS_FRAMES = """
    {topic_a}遇上{topic_b}，{group}买账吗？
    {firm_a}与{firm_b}{lately}达成合作
    {group}最近都在聊{topic_a}和{topic_b}"""


class Writer:
    """Writes headlines from the grammar with one random stream."""

    def __init__(self, seed: int):
        self._rng = random.Random(seed)

    def pick(self, options):
        # Only random() is promised to give the same numbers in every Python version; choice() and shuffle() are not.
        return options[int(self._rng.random() * len(options))]

    def shuffle(self, items: list) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = int(self._rng.random() * (last + 1))
            items[last], items[other] = items[other], items[last]

    def headline(self, label: str) -> str:
        """One headline for `label`; the label of a small share is a matter of opinion, or wrong."""
        other = self.other_label(label)
        draw = self._rng.random()
        if draw < MISLABELLED_SHARE:
            return self.plain(other)
        if draw < MISLABELLED_SHARE + AMBIGUOUS_SHARE:
            first, second = (label, other) if self._rng.random() < 0.5 else (other, label)
            return self.expand(self.pick(AMBIGUOUS_FRAMES.split()), first, second)
        if draw < MISLABELLED_SHARE + AMBIGUOUS_SHARE + PLAIN_SHARE:
            return self.plain(label)
        return self.expand(self.pick(FRAMES[self.frame_kind()].split()), label, other)

    def other_label(self, label: str) -> str:
        return self.pick([name for name in LABELS if name != label])

    def plain(self, label: str) -> str:
        """A headline that is about `label` alone."""
        own = self._rng.random() < OWN_SHARE
        templates = CATEGORIES[label]["headline"] if own else PLAIN_FRAMES
        return self.expand(self.pick(templates.split()), label, label)

    def frame_kind(self) -> str:
        draw = self._rng.random() * sum(FRAME_WEIGHTS.values())
        for kind, weight in FRAME_WEIGHTS.items():
            draw -= weight
            if draw < 0:
                return kind
        return kind

    def expand(self, template: str, news: str, mentioned: str) -> str:
        """Fills every slot of `template`; slots ending in _a come from `news`, those in _b from `mentioned`."""
        return SLOT.sub(lambda match: self.fill(match[1], news, mentioned), template)

    def fill(self, slot: str, news: str, mentioned: str) -> str:
        if slot == "subject":
            # Some of the people have an occupation, and it may be of any category: it is no evidence of the label.
            return self.expand(self.pick(["{who}", "{who}", "{who}", "{job_a}{name}"]), self.pick(LABELS), mentioned)
        if slot == "corp":
            slot = self.pick(["company", "anyfirm"])
        if slot == "anyfirm":
            slot, news = "firm", self.pick([label for label in LABELS if label != "时政"])
        if slot.endswith("_b"):
            slot, news = slot[:-2], mentioned
        slot = slot.removesuffix("_a")
        options = CATEGORIES[news].get(slot) or SHARED[slot]
        return self.expand(self.pick(options.split()), news, mentioned)


def write_split(writer: Writer, size: int, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yields `size` labelled headlines, as many of each category, none of which is in `seen`."""
    labels = [LABELS[index % len(LABELS)] for index in range(size)]
    writer.shuffle(labels)
    for label in labels:
        text = writer.headline(label)
        while text in seen or not MIN_LENGTH <= len(text) <= MAX_LENGTH:
            text = writer.headline(label)
        seen.add(text)
        yield label, text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--train_size", type=int, default=4000)
    parser.add_argument("--validation_size", type=int, default=500)
    parser.add_argument("--test_size", type=int, default=1000)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    writer, seen = Writer(arguments.seed), set()
    # The training set comes last, so that another size of it leaves the other two as they are.
    for split in ("test", "validation", "train"):
        rows = write_split(writer, getattr(arguments, f"{split}_size"), seen)
        lines = "".join(f"{label}\t{text}\n" for label, text in rows)
        (arguments.output_dir / f"{split}.tsv").write_bytes(lines.encode("utf-8"))


if __name__ == "__main__":
    main()
