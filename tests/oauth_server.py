"""A stand-in for the Hub's signing in (OpenID Connect) on localhost: whoever comes is `visitor` and gets the stand-in Hub's
token."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.hub_server import TOKEN

CLIENT, SECRET = "client-of-the-space", "secret-of-the-space"


class OAuthServer:
    """Signs everybody in at once; `nonces` keeps what each code was asked with."""

    def __init__(self):
        self.key = RSAKey.generate_key(2048, {"kid": "stand-in", "use": "sig", "alg": "RS256"})
        self.nonces: dict[str, str] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """What a Space with `hf_oauth: true` is started with."""
        return {
            "SPACE_ID": "someone/mergescope",
            "SYSTEM": "spaces",
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_SCOPES": "openid profile",
            "OPENID_PROVIDER_URL": self.url,
        }

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    provider: OAuthServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        url, mine = urlsplit(self.path), self.provider.url
        if url.path == "/.well-known/openid-configuration":
            self._json(
                {
                    "issuer": mine,
                    "authorization_endpoint": f"{mine}/authorize",
                    "token_endpoint": f"{mine}/token",
                    "jwks_uri": f"{mine}/keys",
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        elif url.path == "/keys":
            self._json({"keys": [self.provider.key.as_dict(private=False)]})
        elif url.path == "/authorize":
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            assert asked["client_id"] == CLIENT
            code = f"code-{len(self.provider.nonces)}"
            self.provider.nonces[code] = asked["nonce"]
            back = asked["redirect_uri"]
            self.send_response(302)
            query = urlencode({"code": code, "state": asked["state"]})
            self.send_header("Location", f"{back}{'&' if '?' in back else '?'}{query}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self):
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        now = int(time.time())
        said = {
            "iss": self.provider.url,
            "sub": "1",
            "aud": CLIENT,
            "iat": now,
            "exp": now + 3600,
            "nonce": self.provider.nonces.pop(asked["code"][0]),
            "name": "A Visitor",
            "preferred_username": "visitor",
            "profile": f"{self.provider.url}/visitor",
            "picture": f"{self.provider.url}/visitor.png",
        }
        signed = jwt.encode({"alg": "RS256", "kid": "stand-in"}, said, self.provider.key)
        self._json(
            {
                "access_token": TOKEN,
                "token_type": "Bearer",
                "expires_in": 3600,
                "scope": "openid profile",
                "id_token": signed,
            }
        )

    def _json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
