"""Does an installed wheel work, with its dependencies and nothing else? Run it outside of the checkout."""

import importlib.util
import os
import subprocess
import sys

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import evt

import fastpdu
from fastpdu import engine
from fastpdu.transport import road_counters

for name in ("rich", "matplotlib", "numpy", "Cython"):
    assert importlib.util.find_spec(name) is None, (
        f"{name} is here: this is not an empty environment"
    )
expected = "pure" if os.environ.get("FASTPDU_SMOKE_PURE") else "compiled"
assert expected == engine.BACKEND, engine.BACKEND
assert "site-packages" in fastpdu.__file__, fastpdu.__file__

received = []


def handle_store(event: evt.Event) -> int:
    received.append(event.dataset)
    return 0x0000


scp = fastpdu.AE(ae_title="SCP")
scp.add_supported_context("1.2.840.10008.1.1")
scp.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)
server = scp.start_server(
    ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle_store)]
)

scu = fastpdu.AE(ae_title="SCU")
scu.add_requested_context("1.2.840.10008.1.1")
scu.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
assoc = scu.associate(*server.server_address[:2])
assert assoc.is_established
assert assoc.send_c_echo().Status == 0

image = Dataset()
image.SOPClassUID = CTImageStorage
image.SOPInstanceUID = generate_uid()
image.PatientName = "Smoke^Test"
image.Rows = image.Columns = 256
image.BitsAllocated = image.BitsStored = 16
image.HighBit, image.SamplesPerPixel, image.PixelRepresentation = 15, 1, 0
image.PhotometricInterpretation = "MONOCHROME2"
image.PixelData = bytes(range(256)) * 512
image.file_meta = Dataset()
image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
for _ in range(10):
    assert assoc.send_c_store(image).Status == 0
assoc.release()
server.shutdown()

assert len(received) == 10
assert all(sent == image for sent in received)
roads = road_counters()
assert roads["fast_sent"] >= 20, roads
assert roads["fast_received"] >= 20, roads

for command in (["fastpdu"], [sys.executable, "-m", "fastpdu"]):
    subprocess.run([*command, "--version"], check=True)
    subprocess.run([*command, "--help"], check=True, stdout=subprocess.DEVNULL)
print(f"smoke test of the {engine.BACKEND} engine passed: {roads}")
