"""Names of data sets that are known to work, for people to choose from; any other of torchvision is tried as well."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """What a name stands for."""

    name: str
    what: str


BUILT_IN = (
    Entry("fashion_mnist_6k", "6,000 + 1,000 images of FashionMNIST, inside the package"),
    Entry("blobs", "one Gaussian cloud for each class, made from the seed"),
    Entry("quadratic", "no data: one quadratic function a client"),
)
OWN = (
    Entry("file", "your own .npz or Parquet file (path)"),
    Entry("ImageFolder", "your own images in train/CLASS/ and test/CLASS/ (folder)"),
    Entry("package.module:Dataset", "your own class, made like those of torchvision"),
)
TORCHVISION = (
    Entry("MNIST", "60,000 + 10,000 grey digits, 28x28"),
    Entry("FashionMNIST", "60,000 + 10,000 grey clothes, 28x28"),
    Entry("KMNIST", "60,000 + 10,000 grey kana, 28x28"),
    Entry("EMNIST", 'letters and digits, 28x28; args = { split = "letters" }'),
    Entry("QMNIST", "60,000 + 60,000 grey digits, 28x28"),
    Entry("CIFAR10", "50,000 + 10,000 photographs, 32x32, 10 classes"),
    Entry("CIFAR100", "50,000 + 10,000 photographs, 32x32, 100 classes"),
    Entry("SVHN", "73,257 + 26,032 house numbers, 32x32; needs scipy"),
    Entry("STL10", "5,000 + 8,000 photographs, 96x96, 10 classes"),
    Entry("USPS", "7,291 + 2,007 grey digits, 16x16"),
    Entry("GTSRB", "traffic signs, 43 classes; image_size"),
    Entry("DTD", "textures, 47 classes; image_size"),
    Entry("EuroSAT", "27,000 satellite images, 64x64, 10 classes"),
    Entry("Flowers102", "flowers, 102 classes; image_size"),
    Entry("Food101", "meals, 101 classes; image_size"),
    Entry("Imagenette", "10 classes of ImageNet; image_size"),
    Entry("OxfordIIITPet", "pets, 37 classes; image_size"),
    Entry("FakeData", "noise, for trying things out; args = { size = 1000, image_size = [3, 32, 32] }"),
)
