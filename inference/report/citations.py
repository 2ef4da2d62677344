"""What a paper that used iaunet cites, as BibTeX by the key that methods.md cites it with."""

import re
from collections.abc import Mapping

CITATIONS: Mapping[str, str] = {
    "unet": """@inproceedings{unet,
  author = {Ronneberger, Olaf and Fischer, Philipp and Brox, Thomas},
  title = {{U-Net}: Convolutional Networks for Biomedical Image Segmentation},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention (MICCAI)},
  year = {2015},
  doi = {10.1007/978-3-319-24574-4_28}
}""",
    "attention_unet": """@misc{attention_unet,
  author = {Oktay, Ozan and Schlemper, Jo and Le Folgoc, Lo{\\"i}c and others},
  title = {Attention {U-Net}: Learning Where to Look for the Pancreas},
  year = {2018},
  eprint = {1804.03999},
  archivePrefix = {arXiv}
}""",
    "resunet": """@article{resunet,
  author = {Zhang, Zhengxin and Liu, Qingjie and Wang, Yunhong},
  title = {Road Extraction by Deep Residual {U-Net}},
  journal = {IEEE Geoscience and Remote Sensing Letters},
  year = {2018},
  doi = {10.1109/LGRS.2018.2802944}
}""",
    "swin_unet": """@misc{swin_unet,
  author = {Cao, Hu and Wang, Yueyue and Chen, Joy and Jiang, Dongsheng and Zhang, Xiaopeng and
    Tian, Qi and Wang, Manning},
  title = {{Swin-Unet}: {Unet}-like Pure Transformer for Medical Image Segmentation},
  year = {2021},
  eprint = {2105.05537},
  archivePrefix = {arXiv}
}""",
    "unext": """@inproceedings{unext,
  author = {Valanarasu, Jeya Maria Jose and Patel, Vishal M.},
  title = {{UNeXt}: {MLP}-Based Rapid Medical Image Segmentation Network},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention (MICCAI)},
  year = {2022},
  doi = {10.1007/978-3-031-16443-9_3}
}""",
    "adam": """@inproceedings{adam,
  author = {Kingma, Diederik P. and Ba, Jimmy},
  title = {Adam: A Method for Stochastic Optimization},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2015},
  eprint = {1412.6980},
  archivePrefix = {arXiv}
}""",
    "adamw": """@inproceedings{adamw,
  author = {Loshchilov, Ilya and Hutter, Frank},
  title = {Decoupled Weight Decay Regularization},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2019},
  eprint = {1711.05101},
  archivePrefix = {arXiv}
}""",
    "cosine": """@inproceedings{cosine,
  author = {Loshchilov, Ilya and Hutter, Frank},
  title = {{SGDR}: Stochastic Gradient Descent with Warm Restarts},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2017},
  eprint = {1608.03983},
  archivePrefix = {arXiv}
}""",
    "batchgenerators": """@misc{batchgenerators,
  author = {Isensee, Fabian and J{\\"a}ger, Paul and Wasserthal, Jakob and others},
  title = {batchgenerators: a {Python} framework for data augmentation},
  year = {2020},
  doi = {10.5281/zenodo.3632567}
}""",
    "torch": """@inproceedings{torch,
  author = {Paszke, Adam and Gross, Sam and Massa, Francisco and others},
  title = {{PyTorch}: An Imperative Style, High-Performance Deep Learning Library},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019},
  eprint = {1912.01703},
  archivePrefix = {arXiv}
}""",
    "numpy": """@article{numpy,
  author = {Harris, Charles R. and Millman, K. Jarrod and van der Walt, St{\\'e}fan J. and others},
  title = {Array programming with {NumPy}},
  journal = {Nature},
  year = {2020},
  volume = {585},
  pages = {357--362},
  doi = {10.1038/s41586-020-2649-2}
}""",
    "scipy": """@article{scipy,
  author = {Virtanen, Pauli and Gommers, Ralf and Oliphant, Travis E. and others},
  title = {{SciPy} 1.0: Fundamental Algorithms for Scientific Computing in {Python}},
  journal = {Nature Methods},
  year = {2020},
  volume = {17},
  pages = {261--272},
  doi = {10.1038/s41592-019-0686-2}
}""",
    "bootstrap": """@book{bootstrap,
  author = {Efron, Bradley and Tibshirani, Robert J.},
  title = {An Introduction to the Bootstrap},
  publisher = {Chapman \\& Hall},
  year = {1993}
}""",
    "surface_dice": """@article{surface_dice,
  author = {Nikolov, Stanislav and Blackwell, Sam and Zverovitch, Alexei and others},
  title = {Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy: Deep Learning Algorithm
    Development and Validation Study},
  journal = {Journal of Medical Internet Research},
  year = {2021},
  doi = {10.2196/26151}
}""",
    "nndetection": """@inproceedings{nndetection,
  author = {Baumgartner, Michael and J{\\"a}ger, Paul F. and Isensee, Fabian and Maier-Hein, Klaus H.},
  title = {{nnDetection}: A Self-configuring Method for Medical Object Detection},
  booktitle = {Medical Image Computing and Computer-Assisted Intervention (MICCAI)},
  year = {2021},
  doi = {10.1007/978-3-030-87240-3_51}
}""",
    "calibration": """@inproceedings{calibration,
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  title = {On Calibration of Modern Neural Networks},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2017},
  eprint = {1706.04599},
  archivePrefix = {arXiv}
}""",
    "confident_learning": """@article{confident_learning,
  author = {Northcutt, Curtis G. and Jiang, Lu and Chuang, Isaac L.},
  title = {Confident Learning: Estimating Uncertainty in Dataset Labels},
  journal = {Journal of Artificial Intelligence Research},
  year = {2021},
  volume = {70},
  pages = {1373--1411},
  doi = {10.1613/jair.1.12125}
}""",
}


def cited_keys(text: str) -> list[str]:
    """The keys that a text cites as ``[@key]`` or ``[@key; @other]``, each once, in the order they appear."""
    groups = re.findall(r"\[(@[^\]]+)\]", text)
    return [*dict.fromkeys(key for group in groups for key in re.findall(r"@(\w+)", group))]
