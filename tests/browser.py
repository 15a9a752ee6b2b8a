"""A headless Chromium for tests that look at pages."""

import contextlib
import importlib.util
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing():
    """Why there is no Chromium to look with; None where there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is on the PATH"
    return None


@contextlib.contextmanager
def chromium():
    """A Chromium that runs; while it does, this thread can run no event loop of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, NAMES)))
        # Containers give no rights to its sandbox, and 64 MB of shared memory.
        rights = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=path, args=rights)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser, url, *, width=1400, height=900, dark=False, fails=()):
    """A page, as wide as so many pixels, in light or dark.

    Errors in it fail the test, but for those whose text has a word of `fails`.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.set_default_timeout(20_000)
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert [one for one in wrong if not any(word in one for word in fails)] == []


def fits(page):
    """Whether nothing needs to be scrolled sideways but what scrolls by itself."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
