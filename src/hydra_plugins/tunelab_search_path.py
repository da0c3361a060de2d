"""Lets any config folder use tunelab's groups: adds conf/ to the end of Hydra's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from tunelab import conf_folder


class TunelabSearchPath(SearchPathPlugin):
    """Found by the `hydra.plugins` entry point and by the namespace folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = f"file://{conf_folder()}"
        if all(element.path not in (path, str(conf_folder())) for element in search_path.get_path()):
            search_path.append(provider="tunelab", path=path)
