"""A small Hub on this machine, for `huggingface_hub` itself

It speaks what the client's `create_repo`, `create_commit`, `model_info` and `hf_hub_download` ask for, in
memory: large files go over the LFS protocol and come from a second address, as from the Hub's CDN. Xet is not
spoken, so the client has to run with HF_HUB_DISABLE_XET=1. What is accepted is checked as the Hub checks it:
tokens, digests, YAML.
"""
import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


class Repo:
    "Commits, each a dict of names to bytes; the last is the branch `main`"
    def __init__(self, private=False): self.private,self.commits = private,[('0'*40, {})]

    @property
    def files(self): return self.commits[-1][1]

    def commit(self, files):
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision):
        if revision in (None, 'main'): return self.commits[-1]
        return next((o for o in self.commits if o[0] == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    # Answers

    def send(self, status, body=b'', **headers):
        if not isinstance(body, bytes):
            body,headers = json.dumps(body).encode(),{'Content_Type':'application/json', **headers}
        self.send_response(status)
        for k,v in {'Content_Length':len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def fail(self, status, message, code=None):
        self.send(status, {'error':message}, X_Error_Message=message, **({'X_Error_Code':code} if code else {}))

    # Who asks

    def user(self):
        "The owner of the token; None without one"
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        return self.server.users.get(token, 'nobody') if token else None

    def repo(self, name):
        "The repository, if whoever asks may see it; else the answer is sent"
        repo = self.server.repos.get(name)
        if self.user() == 'nobody': return self.fail(401, 'Invalid credentials in Authorization header')
        if repo and not (repo.private and self.user() != name.split('/')[0]): return repo
        self.fail(404 if self.user() else 401, 'Repository not found', 'RepoNotFound')

    def writable(self, name):
        if not (repo := self.repo(name)): return
        if self.user() == name.split('/')[0]: return repo
        self.fail(403 if self.user() else 401, 'You have no right to write here')

    # What is asked

    def answer(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0)) if self.command in ('POST', 'PUT') else b''
        if self.headers.get('Transfer-Encoding') == 'chunked': body = self.chunks()
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get('Authorization')))
        if canned := self.server.canned.get((self.command, path)): return self.send(*canned)
        for pattern,f in self.routes.items():
            if m := re.fullmatch(pattern, f'{self.command} {path}'): return f(self, body, *m.groups())
        self.fail(404, f'{self.command} {path} is not spoken here')

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def chunks(self):
        res = b''
        while n := int(self.rfile.readline(), 16):
            res += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return res

    def create(self, body):
        d = json.loads(body)
        name = f"{d['organization'] or self.user()}/{d['name']}"
        if self.user() in (None, 'nobody'): return self.fail(401, 'Invalid username or password.')
        if self.user() != name.split('/')[0]:
            return self.fail(
                403, f"You don't have the rights to create a model under the namespace \"{d['organization']}\".")
        there = name in self.server.repos
        if not there: self.server.repos[name] = Repo(d.get('private') or d.get('visibility') == 'private')
        self.send(409 if there else 200, {'url':f'{self.server.url}/{name}',
                                          **({'error':'You already created this model repo'} if there else {})})

    def validate(self, body):
        "The front matter of a card, read with a YAML parser; the licence is one of those that the Hub has"
        try: d = yaml.safe_load(json.loads(body)['content'].split('---\n')[1])
        except (yaml.YAMLError, IndexError) as e: return self.send(400, {'errors':[{'message':str(e)}], 'warnings':[]})
        wrong = d.get('license', 'mit') not in ('mit', 'apache-2.0', 'cc0-1.0', 'other')
        self.send(400 if wrong else 200, {'errors':[{'message':'"license" must be one of …'}]*wrong, 'warnings':[]})

    def preupload(self, body, name):
        if not self.writable(name): return
        mode = lambda o: 'lfs' if o.endswith('.safetensors') else 'regular'
        self.send(200, {'files':[dict(path=o['path'], uploadMode=mode(o['path']), shouldIgnore=False)
                                 for o in json.loads(body)['files']]})

    def batch(self, body, name):
        if not self.writable(name): return
        upload = (lambda o: {} if o['oid'] in self.server.lfs
                  else {'actions':{'upload':{'href':f"{self.server.url}/lfs/{o['oid']}"}}})
        self.send(200, {'transfer':'basic', 'objects':[dict(oid=o['oid'], size=o['size'], **upload(o))
                                                       for o in json.loads(body)['objects']]})

    def put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid: return self.fail(422, 'Digest does not fit')
        self.server.lfs[oid] = body
        self.send(200)

    def commit(self, body, name):
        if not (repo := self.writable(name)): return
        files = dict(repo.files)
        for key,v in (json.loads(o).values() for o in body.splitlines()):
            if key == 'file': files[v['path']] = base64.b64decode(v['content'])
            if key == 'lfsFile': files[v['path']] = self.server.lfs[v['oid']]
            if key == 'deletedFile': del files[v['path']]
        sha = repo.commit(files)
        self.send(200, {'commitUrl':f'{self.server.url}/{name}/commit/{sha}', 'commitOid':sha, 'success':True})

    def info(self, body, name, revision=None):
        if not (repo := self.repo(name)): return
        if not repo.at(revision): return self.fail(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        sha,files = repo.at(revision)
        said = self.server.sizes
        self.send(200, dict(id=name, sha=sha, private=repo.private,
                            siblings=[dict(rfilename=k, size=said.get(k, len(v))) for k,v in sorted(files.items())]))

    def resolve(self, body, name, revision, file):
        if not (repo := self.repo(name)): return
        sha,files = repo.at(revision) or (None, {})
        if file not in files: return self.fail(404, 'Entry not found', 'EntryNotFound')
        oid = hashlib.sha256(files[file]).hexdigest()
        head = dict(X_Repo_Commit=sha, ETag=f'"{oid}"')
        if not file.endswith('.safetensors'): return self.send(200, files[file], **head)
        self.server.lfs[oid] = files[file]
        cdn = self.server.url.replace('127.0.0.1', 'localhost')
        self.send(302, b'', Location=f'{cdn}/cdn/{oid}', X_Linked_Size=len(files[file]), X_Linked_ETag=f'"{oid}"', **head)

    def cdn(self, body, oid): self.send(200, self.server.lfs[oid])

    _name = '([^/]+/[^/]+)'
    routes = {
        'POST /api/repos/create': create,
        'POST /api/validate-yaml': validate,
        f'POST /api/models/{_name}/preupload/main': preupload,
        f'POST /{_name}[.]git/info/lfs/objects/batch': batch,
        'PUT /lfs/([0-9a-f]{64})': put,
        f'POST /api/models/{_name}/commit/main': commit,
        f'GET /api/models/{_name}': info,
        f'GET /api/models/{_name}/revision/([^/]+)': info,
        f'(?:HEAD|GET) /{_name}/resolve/([^/]+)/(.+)': resolve,
        '(?:HEAD|GET) /cdn/([0-9a-f]{64})': cdn,
    }


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves `hub.repos` at `hub.url`; `canned[method, path]` are answers that beat it,
    `sizes` what is said of a file's size, `asked` what was asked"""
    daemon_threads = True
    def __init__(self, port=0):
        super().__init__(('127.0.0.1', port), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.users = {'hf_mine':'me', 'hf_yours':'you'}
        self.repos,self.lfs,self.canned,self.sizes,self.asked = {},{},{},{},[]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()
