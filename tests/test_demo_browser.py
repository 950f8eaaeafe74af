"""The page to try a student as a person meets it: in a browser, by the keyboard, in both languages, offline."""

import json
import shutil
import time

import pytest
from conftest import LABEL_NAMES

from kd_trainer.arguments import ModelArguments
from kd_trainer.demo_models import load_demo
from kd_trainer.demo_words import say

pytest.importorskip("gradio")
pytest.importorskip("selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

TEXT = "球队进银行"
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


class Browser:
    """A chromium at a page; what it looks for it waits for."""

    def __init__(self, address, language, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1400"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"intl.accept_languages": language, "download.default_directory": str(folder)}
        )
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)

    def wait(self, question, seconds=60):
        """The first true answer of `question`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                answer = question()
            except Exception:  # what was found has been drawn again
                answer = None
            if answer:
                return answer
            time.sleep(0.1)
        raise AssertionError(f"nothing came: {self.driver.find_element(By.TAG_NAME, 'body').text[:2000]}")

    def find(self, selector):
        return self.wait(lambda: self.driver.find_element(By.CSS_SELECTOR, selector))

    def sees(self, *texts):
        """Waits until all of them are to be seen."""
        self.wait(lambda: all(text in self.driver.find_element(By.TAG_NAME, "body").text for text in texts))

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, selector):
        """Moves the focus by the tabulator alone."""
        for _ in range(40):
            focused = self.driver.switch_to.active_element
            if focused in self.driver.find_elements(By.CSS_SELECTOR, selector):
                return focused
            self.press(Keys.TAB)
        raise AssertionError(f"no tabulator leads to {selector}")

    def requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def server():
    """A function that serves a page of a student and its teacher, or of the student alone."""
    from kd_trainer.demo_page import Page, serve

    running = []

    def start(folders, examples):
        demo = load_demo(*folders, ModelArguments())
        blocks, address = serve(Page(demo, ("a/student", folders[1] and "a/teacher"), examples), "127.0.0.1", None)
        running.append(blocks)
        return address

    yield start
    for blocks in running:
        blocks.close()


@pytest.fixture
def open_page(server, tmp_path, monkeypatch):
    browsers = []

    def start(folders, examples=(), language="en"):
        browsers.append(Browser(server(folders, examples), language, tmp_path))
        return browsers[-1]

    yield start
    for browser in browsers:
        browser.driver.quit()


@pytest.fixture
def folders(make_student, tokenizer, make_teacher, teacher_tokenizer, tmp_path):
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    make_student().save_pretrained(student)
    tokenizer.save_pretrained(student)
    make_teacher().save_pretrained(teacher)
    teacher_tokenizer.save_pretrained(teacher)
    return student, teacher


def test_a_text_is_classified_by_keyboard_alone_in_both_languages_and_offline(open_page, folders):
    browser = open_page(folders, ["球队", "股市大涨"], "zh-CN")
    browser.sees(say("classify", "zh"), say("examples", "zh"))
    browser.tab_to("#kd-text-0 textarea")
    browser.press(TEXT, Keys.ENTER)
    browser.sees(say("probabilities", "zh"), say("student", "zh"), say("teacher", "zh"))
    bars = browser.driver.find_elements(By.CSS_SELECTOR, "#kd-answer .kd-fill")
    assert len(bars) == 2 * len(LABEL_NAMES) and all(bar.size["width"] >= 2 and bar.size["height"] > 5 for bar in bars)
    agree = browser.find("#kd-answer .kd-verdict")
    labels = [card.text for card in browser.driver.find_elements(By.CSS_SELECTOR, "#kd-answer .kd-model b")]
    assert say("agree" if labels[0] == labels[1] else "differ", "zh") in agree.text
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#kd-answer mark.kd-most")) == 10
    # The other language: what is there is said anew, the text stays.
    browser.tab_to("#kd-language input[value=en]")
    browser.press(Keys.SPACE)
    browser.sees(say("probabilities", "en"), say("classify", "en"), say("many_tab", "en"), say("examples", "en"))
    assert browser.find("#kd-text-0 textarea").get_attribute("value") == TEXT
    browser.wait(lambda: browser.driver.execute_script("return document.documentElement.lang") == "en")
    # An example, picked by the keyboard.
    examples = browser.driver.find_elements(By.CSS_SELECTOR, "#kd-examples button")
    assert [button.text for button in examples] == ["球队", "股市大涨"]
    browser.tab_to("#kd-examples button:nth-of-type(2)")
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.find("#kd-text-0 textarea").get_attribute("value") == "股市大涨")
    browser.wait(lambda: len(browser.driver.find_elements(By.CSS_SELECTOR, "#kd-answer mark.kd-most")) == 8)
    # Where the focus is can be seen.
    outline = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    for selector in ("#kd-classify", "#kd-examples button", "#kd-language input", "#kd-text-0 textarea"):
        browser.tab_to(selector)
        assert browser.driver.execute_script(outline) == ["solid", "3px"]
    foreign = [url for url in browser.requests() if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not [url for url in foreign if url.startswith("http")]
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_bad_texts_are_refused_in_words_and_hostile_ones_run_nothing(open_page, folders):
    browser = open_page((folders[0], None))
    browser.sees(say("classify", "en"))
    box = browser.find("#kd-text-0 textarea")
    box.send_keys(Keys.ENTER)
    browser.sees(say("empty", "en"))
    box.send_keys(HOSTILE, Keys.ENTER)
    shown = "const text = arguments[0].cloneNode(true); text.querySelectorAll('sup').forEach(sup => sup.remove()); "
    shown += "return text.textContent"
    browser.wait(
        lambda: browser.driver.execute_script(shown, browser.find("#kd-answer .kd-text")).startswith(HOSTILE[:16])
    )
    assert browser.driver.title == say("title", "en") and not browser.driver.find_elements(
        By.CSS_SELECTOR, "#kd-answer img"
    )
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "#kd-answer .kd-teacher, #kd-answer .kd-verdict")
    # What no keyboard types, a clipboard holds.
    paste = """
        const box = arguments[0], set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set;
        set.call(box, arguments[1] === null ? '股' + String.fromCharCode(0xd800) : arguments[1].repeat(arguments[2]));
        box.dispatchEvent(new Event('input', {bubbles: true}));
    """
    browser.driver.execute_script(paste, box, "股市", 500_000)
    box.send_keys(Keys.ENTER)
    browser.sees("1,000,000 characters")
    browser.driver.execute_script(paste, box, None, 0)
    box.send_keys(Keys.ENTER)
    browser.sees("half a character")
    browser.driver.execute_script(paste, box, "球\0", 20)
    box.send_keys(Keys.ENTER)
    browser.sees("16 of 40 characters", "U+0000")


def test_a_file_is_uploaded_and_comes_back_labelled(open_page, folders, tmp_path):
    browser = open_page((folders[0], None))
    browser.sees(say("classify", "en"))
    browser.tab_to("button[role=tab]:nth-of-type(2)")
    browser.press(Keys.ENTER)
    browser.sees(say("upload", "en"), "20 MB")
    browser.tab_to("#kd-upload")
    (tmp_path / "bad.csv").write_bytes("text\n股市\n".encode("gbk"))
    (tmp_path / "good.csv").write_text("id,text\n1,球队\n2,股市\n", encoding="utf-8")
    browser.find("input[type=file]").send_keys(str(tmp_path / "bad.csv"))
    browser.sees(say("file_encoding", "en", line=2))
    browser.find("input[type=file]").send_keys(str(tmp_path / "good.csv"))
    browser.sees("2 rows of good.csv")
    browser.tab_to("#kd-download")
    browser.press(Keys.ENTER)
    written = browser.wait(lambda: [path for path in tmp_path.glob("good-labelled*.csv")])[0]
    lines = written.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "text,label," + ",".join(f"probability_{name}" for name in LABEL_NAMES)
    assert [line.split(",")[0] for line in lines[1:]] == ["球队", "股市"]
    assert {line.split(",")[1] for line in lines[1:]} <= set(LABEL_NAMES)
