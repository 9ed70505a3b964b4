# What most users need. `__init__.py` reads this file: a module is imported when one of its names is
# asked for, because torch and the model libraries take seconds. "X as X" tells a type checker that
# the name is to be had from here.
from .core.errors import InputError as InputError
from .data.pairs import write_pairs as write_pairs
from .data.prompted_pictures import PictureSource as PictureSource
from .data.prompts import PromptSet as PromptSet
from .data.prompts import read_prompts as read_prompts
from .data.sources import PairSource as PairSource
from .data.sources import read_pairs as read_pairs
from .models.config import EncodeConfig as EncodeConfig
from .models.config import SampleConfig as SampleConfig
from .models.encoding import EncodedPairs as EncodedPairs
from .models.exporting import export as export
from .models.picture_store import Pictures as Pictures
from .page.training_page import TrainingPage as TrainingPage
from .pipeline import Model as Model
from .pipeline import align as align
from .pipeline import encode as encode
from .pipeline import evaluate as evaluate
from .pipeline import label as label
from .pipeline import sample as sample
from .pipeline import score as score
from .pipeline import train as train
from .recipes.config import AlignConfig as AlignConfig
from .recipes.settings import settings_of as settings_of
from .recipes.settings import variant as variant
from .recipes.table import recipe_named as recipe_named
from .scoring.registry import load_scorers as load_scorers
from .scoring.registry import register_scorer as register_scorer
from .training.callbacks import Callback as Callback
from .training.config import TrainConfig as TrainConfig
from .training.run import LabelledPairs as LabelledPairs
from .training.validation_config import ValidationConfig as ValidationConfig
from .voting.config import LabelConfig as LabelConfig
from .voting.labels import labeller as labeller
from .voting.labels import read_labels as read_labels
from .voting.pair_files import write_labelled_pairs as write_labelled_pairs

__version__: str
