import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever runs against the compiled stub of NVML needs a compiler."""
    for item in items:
        if "library" in getattr(item, "fixturenames", ()):
            item.add_marker("compiler")
