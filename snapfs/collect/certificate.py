"""L4 certificate: a proof as a file: batches/ID/certificate.json. Pure; any thread.

Specification. UTF-8 JSON, one object, keys sorted, no spaces, one newline at the end. Keys: `certificate`
1; `store` (uuid), `batch` (number or null), `epoch`, `hashed`, `passed`, `nodes`, `references`, `chunks`,
`packs`, `missing` (how many), `evidence` (a list of [id, by, why]), `roots` (a list of [kind, number,
name, root, items, refs, resting] in the order of the catalog), and `digest`: BLAKE3-256 of the same
JSON without `digest`, its newline included. Ids, uuid and digest are hexadecimal."""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

from snapfs.collect.proof_values import Proof
from snapfs.format.ids import data_id

CERTIFICATE_VERSION = 1


def encode_certificate(proof: Proof) -> bytes:
    """Return the bytes of the file. Its digest for the receipt is `data_id` of all of them."""
    fields: dict[str, Any] = {
        'certificate': CERTIFICATE_VERSION,
        'store': proof.uuid.hex(),
        'batch': proof.batch,
        'epoch': proof.epoch,
        'hashed': proof.hashed,
        'passed': proof.passed,
        'nodes': proof.nodes,
        'references': proof.references,
        'chunks': proof.chunks,
        'packs': proof.packs,
        'missing': proof.missing_count,
        'evidence': [[one.id.hex(), one.by, one.why] for one in proof.missing],
        'roots': [list(astuple(root)) for root in proof.roots],
    }
    return _canonical({**fields, 'digest': data_id(_canonical(fields)).hex()})


def _canonical(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, sort_keys=True, separators=(',', ':')) + '\n').encode()
