"""``wsiweb demo``: ``slide`` makes a slide; ``tour`` serves it over DICOMweb and shows what the library does."""
