// An OpenID provider for tests: npm's oidc-provider with pages to log in, to consent and to deny.
//
//     node provider.mjs '{"host": "127.0.0.1", "port": 0, "accounts": {"ada": "secret"}}'
//
// host, port          where it listens; port 0: at a free one
// accounts            passwords by user name
// accessTokenSeconds  how long an access token is good; an hour unless told otherwise
//
// Once it listens it writes one line: its issuer, http://HOST:PORT. Its one client is `testtool`: public, so that it must use PKCE, and native, so that it may be called back at any
// port of loopback. Each page has a colour of its own, by which a test that sees nothing but the
// screen of a VM knows which one is shown; fields and buttons are in reach of the keyboard alone.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

import Provider from 'oidc-provider';

const CLIENT = 'testtool';
const COLOURS = { login: '#205080', wrong: '#802050', consent: '#508020' };

const { host, port, accounts, accessTokenSeconds = 3600 } = JSON.parse(process.argv[2]);
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const server = createServer().listen(port, host);
await once(server, 'listening');
const issuer = `http://${host}:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [{
    client_id: CLIENT,
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: ['http://127.0.0.1/callback'],
  }],
  claims: { openid: ['sub'], profile: ['name'] },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
  findAccount: (_, name) => ({ accountId: name, claims: () => ({ sub: name, name }) }),
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' }] },
  rotateRefreshToken: true,
  ttl: {
    AccessToken: accessTokenSeconds,
    Grant: 86400,
    IdToken: 3600,
    Interaction: 3600,
    RefreshToken: 86400,
    Session: 86400,
  },
});

function page(colour, title, body) {
  return `<!doctype html><html lang="en"><title>${title}</title>
<body style="background:${colour};color:white;font:16px sans-serif"><h1>${title}</h1>
<form method="post">${body}</form>`;
}

function loginPage(isWrong) {
  return page(COLOURS[isWrong ? 'wrong' : 'login'], 'Log in', `
<p><label>User name <input name="name" autofocus></label></p>
<p><label>Password <input name="password" type="password"></label></p>
<p><button name="answer" value="login">Log in</button>
<button name="answer" value="deny">Cancel</button></p>
${isWrong ? '<p role="alert">Wrong user name or password.</p>' : ''}`);
}

function consentPage() {
  return page(COLOURS.consent, 'Let testtool in?', `
<p>testtool asks for your name, and to stay logged in.</p>
<p><button name="answer" value="allow" autofocus>Allow</button>
<button name="answer" value="deny">Deny</button></p>`);
}

function send(response, status, html) {
  response.writeHead(status, { 'Content-Type': 'text/html; charset=utf-8' });
  response.end(html);
}

async function consented(interaction) {
  const { params, prompt, session } = interaction;
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  grant.addOIDCClaims(prompt.details.missingOIDCClaims ?? []);
  return { consent: { grantId: await grant.save() } };
}

async function interact(request, response) {
  const interaction = await provider.interactionDetails(request, response);
  const asksLogin = interaction.prompt.name === 'login';
  if (request.method !== 'POST') {
    send(response, 200, asksLogin ? loginPage(false) : consentPage());
    return;
  }
  const given = new URLSearchParams(await text(request));
  const name = given.get('name');
  let result;
  if (given.get('answer') === 'deny') {
    result = { error: 'access_denied', error_description: 'The user denied the login.' };
  } else if (!asksLogin) {
    result = await consented(interaction);
  } else if (Object.hasOwn(accounts, name) && accounts[name] === given.get('password')) {
    result = { login: { accountId: name } };
  } else {
    send(response, 401, loginPage(true));
    return;
  }
  await provider.interactionFinished(request, response, result);
}

const standard = provider.callback();
server.on('request', (request, response) => {
  if (!request.url.startsWith('/interaction/')) {
    standard(request, response);
    return;
  }
  interact(request, response).catch((error) => {
    send(response, 400, page('black', 'This login is over', `<p>${error.name}</p>`));
  });
});
console.log(issuer);
