"""A stand-in for the Hub's API on this machine: repositories in memory, as much of it as an upload
asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = 'hf_this-is-no-token-of-anybody'


class LocalHub:
    "Repositories, by their names, and what was asked of them."

    def __init__(self) -> None:
        self.url = ''  # where it answers, once it does
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, str, str]] = []  # method, path, authorization
        self.cards: list[str] = []  # those that the library let the Hub validate
        self.commits = 0
        self.refuses_commits = False

    def create(self, asked: dict) -> tuple[int, dict]:
        name = f'{asked["organization"]}/{asked["name"]}'
        if name in self.files:
            error = 'You already created this model repo'
            return 409, {'error': error, 'url': f'{self.url}/{name}'}
        visible = asked.get('visibility', 'private' if asked.get('private') else 'public')
        self.private[name], self.files[name] = visible == 'private', {}
        return 200, {'url': f'{self.url}/{name}', 'name': name}

    def facts(self, name: str) -> tuple[int, dict]:
        if name not in self.files:
            return 404, {'error': 'Repository not found'}
        facts = {'id': name, 'modelId': name, 'private': self.private[name], 'sha': '0' * 40}
        return 200, facts | {'tags': [], 'siblings': [{'rfilename': f} for f in self.files[name]]}

    def modes(self, name: str, asked: dict) -> tuple[int, dict]:
        files = []
        for file in asked['files']:
            entry = {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
            if file['path'] in self.files[name]:
                data = self.files[name][file['path']]
                head = f'blob {len(data)}\0'.encode()
                entry['oid'] = hashlib.sha1(head + data).hexdigest()  # git's name of a file
            files.append(entry)
        return 200, {'files': files}

    def commit(self, name: str, lines: list[dict]) -> tuple[int, dict]:
        if self.refuses_commits:
            return 403, {'error': f'the token {TOKEN} may not write here'}
        self.commits += 1
        for line in lines:
            if line['key'] == 'file':
                value = line['value']
                self.files[name][value['path']] = base64.b64decode(value['content'])
        oid = f'{self.commits:040x}'
        return 200, {
            'success': True,
            'commitOid': oid,
            'commitUrl': f'{self.url}/{name}/commit/{oid}',
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        parts = path.partition('?')[0].strip('/').split('/')
        if parts == ['api', 'repos', 'create']:
            return self.create(json.loads(body))
        if parts == ['api', 'validate-yaml']:  # the library asks it about a README.md
            self.cards.append(json.loads(body)['content'])
            return 200, {'errors': [], 'warnings': []}
        name = '/'.join(parts[2:4])
        if method == 'GET':
            return self.facts(name)
        if parts[4] == 'preupload':
            return self.modes(name, json.loads(body))
        if parts[4] == 'commit':
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        return 404, {'error': f'nobody answers {method} {path}'}


@contextmanager
def local_hub():
    "A `LocalHub` that answers at its `url`, on 127.0.0.1 alone."
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            hub.asked.append((self.command, self.path, self.headers.get('authorization', '')))
            body = self.rfile.read(int(self.headers.get('content-length') or 0))
            code, said = hub.answer(self.command, self.path, body)
            data = json.dumps(said).encode()
            self.send_response(code)
            self.send_header('content-type', 'application/json')
            self.send_header('content-length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    hub.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(hub, monkeypatch) -> None:
    "Let `huggingface_hub` take a local hub for the Hub, with a token, in this test."
    from huggingface_hub import constants, hf_api

    for name in ('HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setattr(hf_api.constants, 'ENDPOINT', hub.url)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
