"""Configurations as plain mappings, where the real ones are OmegaConf's."""

import copy


def config_to_primitive(config):
    """Plain dictionaries and lists."""
    return copy.deepcopy(config)
