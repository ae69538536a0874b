"""
A script for the Processing toolbox of QGIS: maps the land cover of a scene by `hsst predict`, and loads the map.

QGIS has a Python of its own. HSST stays in another one, and is called as a program.
"""

import os
import subprocess

from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterString,
)

# What QGIS sets for its own Python, GDAL and PROJ: another Python would fail with it, or find no coordinate system
OF_QGIS = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")


def command_of(program, scene, model, output, confidence=False):
    """The words of the command that maps a scene; a map that is there is replaced, as QGIS has asked."""
    words = [program, "predict", scene, "--model", model, "--output", output, "--overwrite"]
    return words + (["--confidence"] if confidence else [])


def confidence_of(output):
    """Where the confidence of a map is."""
    return os.path.splitext(output)[0] + "_confidence.tif"


def run(command, say=print, is_canceled=lambda: False):
    """
    Runs a command, and says its lines as they come. RuntimeError with the last line where it fails; where it is
    canceled it is ended, and leaves no half-written map.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_QGIS}
    environment["PYTHONIOENCODING"] = "utf-8"
    hidden = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            **hidden,
        )
    except OSError as error:
        raise RuntimeError(f"{command[0]} cannot be started: {error}") from None
    last = ""
    with process:
        for line in process.stdout:  # a progress bar writes a line at every change
            last = line.strip() or last
            say(line.rstrip())
            if is_canceled():
                process.terminate()
                return
    if process.returncode:
        raise RuntimeError(last or f"{command[0]} ended with exit code {process.returncode}")


class MapStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives the map the style beside it (.qml). Processing loads layers without, and would list 256 classes."""

    def postProcessLayer(self, layer, context, feedback):  # noqa: N802
        layer.loadDefaultStyle()


MAP_STYLE = MapStyle()  # QGIS keeps no reference of its own


class HsstMap(QgsProcessingAlgorithm):
    SCENE, MODEL, PROGRAM, CONFIDENCE, OUTPUT = "SCENE", "MODEL", "PROGRAM", "CONFIDENCE", "OUTPUT"

    def name(self):
        return "hsst_map"

    def displayName(self):  # noqa: N802
        return "Land cover of a hyperspectral scene (HSST)"

    def group(self):
        return "HSST"

    def groupId(self):  # noqa: N802
        return "hsst"

    def shortHelpString(self):  # noqa: N802
        return (
            "Maps the land cover of a scene with a fine-tuned model. A scene is an image, or METADATA.XML of an EnMAP "
            "product. A model is a folder, or its name on the Hub. The program is hsst of the environment in which "
            "HSST is installed, such as /home/me/HSST/.venv/bin/hsst."
        )

    def createInstance(self):  # noqa: N802
        return HsstMap()

    def initAlgorithm(self, configuration=None):  # noqa: N802
        self.addParameter(QgsProcessingParameterFile(self.SCENE, "Scene"))
        self.addParameter(QgsProcessingParameterString(self.MODEL, "Model"))
        self.addParameter(QgsProcessingParameterString(self.PROGRAM, "Program", "hsst"))
        self.addParameter(QgsProcessingParameterBoolean(self.CONFIDENCE, "Write the confidence, too", False))
        self.addParameter(QgsProcessingParameterRasterDestination(self.OUTPUT, "Land cover"))

    def processAlgorithm(self, parameters, context, feedback):  # noqa: N802
        scene, model, program = (
            self.parameterAsString(parameters, name, context) for name in (self.SCENE, self.MODEL, self.PROGRAM)
        )
        confidence = self.parameterAsBoolean(parameters, self.CONFIDENCE, context)
        output = self.parameterAsOutputLayer(parameters, self.OUTPUT, context)
        if not output.lower().endswith((".tif", ".tiff")):
            raise QgsProcessingException(f"expected a GeoTIFF (.tif) to write the map to, got {output}")
        try:
            run(command_of(program, scene, model, output, confidence), feedback.pushInfo, feedback.isCanceled)
        except RuntimeError as error:
            raise QgsProcessingException(str(error)) from None
        if feedback.isCanceled():
            return {}
        if context.willLoadLayerOnCompletion(output):
            context.layerToLoadOnCompletionDetails(output).setPostProcessor(MAP_STYLE)
        if confidence:
            details = QgsProcessingContext.LayerDetails("Confidence", context.project(), "CONFIDENCE")
            context.addLayerToLoadOnCompletion(confidence_of(output), details)
        return {self.OUTPUT: output}
