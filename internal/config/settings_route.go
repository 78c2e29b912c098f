package config

import "time"

// routeSettings are those of routes, of their doors and of TLS.
var routeSettings = []Setting{
	{
		Name: "proxy_domain", Env: "HATCH_PROXY_DOMAIN", Default: "localhost", Aliases: []string{"HATCH_PROXY_BASE_DOMAIN"},
		Doc: "Domain that routes' subdomains are below. Browsers and curl resolve names below `localhost` to this host without a DNS; for any other domain, a wildcard record must lead to it.",
		set: proxyDomain,
	},
	{
		Name: "proxy_implicit", Env: "HATCH_PROXY_IMPLICIT", Default: "guarded",
		Doc: "Whether `PORT-VM` below the domain, with a VM's id or name, leads to any port of the VM without a route: `guarded` is for callers with an API key of the VM's owner, with the scope exec:write, or a signed link, `off` for none.",
		set: oneOf([]string{"guarded", "off"}, func(c *Config) *string { return &c.ProxyImplicit }),
	},
	{
		Name: "proxy_addr", Env: "HATCH_PROXY_ADDR", Default: "127.0.0.1:9090",
		Doc: "Address and port that routes are served on, over HTTP; `:80` listens on every interface. `off` serves none.",
		set: addressOrOff(func(c *Config) *string { return &c.ProxyAddr }),
	},
	{
		Name: "proxy_trusted", Env: "HATCH_PROXY_TRUSTED",
		Doc: "Networks of reverse proxies in front of hatchd, separated by commas, such as `127.0.0.1/32`. The client's address and scheme that they tell in `X-Forwarded-For` and `X-Forwarded-Proto` are believed. Default: none; the headers of all clients are replaced.",
		set: networks(func(c *Config) *prefixes { return (*prefixes)(&c.ProxyTrusted) }),
	},
	{
		Name: "proxy_max_connections", Env: "HATCH_PROXY_MAX_CONNECTIONS", Default: "4096",
		Doc: "Connections to routes at a time, and requests in progress, 16 to 1048576. VMs of one user may have half of the requests; a quarter may wait for a wake. An eighth is for this host's own processes only, another for other hosts only.",
		set: integer(16, 1<<20, func(c *Config) *int { return &c.ProxyMaxConns }),
	},
	{
		Name: "proxy_max_client_connections", Env: "HATCH_PROXY_MAX_CLIENT_CONNECTIONS", Default: "512",
		Doc: "Connections to routes at a time, and requests in progress, from one IPv4 address, or one IPv6 /64, of another host, 1 to 1048576.",
		set: integer(1, 1<<20, func(c *Config) *int { return &c.ProxyMaxClientConns }),
	},
	{
		Name: "e2b_addr", Env: "HATCH_E2B_ADDR", Default: "off",
		Doc: "Address and port for the client libraries of E2B, over HTTP, such as `127.0.0.1:3000`: both their API and sandboxes, which their headers name. With `HATCH_TLS_ADDR` they are served there, too: the API as `api.` and the domain, ports of sandboxes as `PORT-SANDBOX` below the domain. `off` serves none.",
		set: addressOrOff(func(c *Config) *string { return &c.E2BAddr }),
	},
	{
		Name: "wake_timeout", Env: "HATCH_WAKE_TIMEOUT", Default: "60s", Aliases: []string{"HATCH_PROXY_WAKE_TIMEOUT"},
		Doc: "How long what comes for a sleeping VM waits at most until it is awake, 1s to 10m: a request through a route, a connection to an SSH port or a published port, a tunnel, a command, a file. The wake goes on, also when the client leaves. `hatch wake` waits as long as its client does.",
		set: duration(time.Second, 10*time.Minute, "60s", func(c *Config) *time.Duration { return &c.WakeTimeout }),
	},
	{
		Name: "tls_addr", Env: "HATCH_TLS_ADDR",
		Doc: "Address and port that routes are served on over TLS, and the REST API as `api.` and the domain; `:443` listens on every interface. It needs a certificate (`HATCH_TLS_CERT`) or an account to get some (`HATCH_ACME_EMAIL`). `HATCH_PROXY_ADDR` then only redirects. Default: none.",
		set: address(func(c *Config) *string { return &c.TLSAddr }),
	},
	{
		Name: "tls_cert", Env: "HATCH_TLS_CERT",
		Doc: "File of the certificate for TLS, with its chain, in PEM, such as one for `*.apps.example.org`. It is read again when it changes.",
		set: absolute(func(c *Config) *string { return &c.TLSCert }),
	},
	{
		Name: "tls_key", Env: "HATCH_TLS_KEY",
		Doc: "File of the certificate's key, in PEM; set it together with the certificate.",
		set: absolute(func(c *Config) *string { return &c.TLSKey }),
	},
	{
		Name: "hsts_max_age", Env: "HATCH_HSTS_MAX_AGE", Default: "0",
		Doc: "How long browsers are told to use only TLS for a name that they have visited, such as `8760h`, up to 17520h; `0` does not tell them.",
		set: duration(0, 2*365*24*time.Hour, "8760h", func(c *Config) *time.Duration { return &c.HSTSMaxAge }),
	},
	{
		Name: "acme_email", Env: "HATCH_ACME_EMAIL",
		Doc: "Address that the ACME server sends warnings to. Setting it accepts the server's terms of service, and lets hatchd obtain a certificate for each name that it serves, when a client first comes for it. Default: none are obtained.",
		set: email,
	},
	{
		Name: "acme_ca", Env: "HATCH_ACME_CA",
		Doc: "URL of the ACME server's directory, such as `https://acme-staging-v02.api.letsencrypt.org/directory`. Default: Let's Encrypt.",
		set: httpsURL(func(c *Config) *string { return &c.ACMECA }),
	},
	{
		Name: "acme_ca_roots", Env: "HATCH_ACME_CA_ROOTS",
		Doc: "File of the certificates that the ACME server is trusted by, in PEM, for one of your own. Default: the host's.",
		set: absolute(func(c *Config) *string { return &c.ACMECARoots }),
	},
	{
		Name: "acme_dns_server", Env: "HATCH_ACME_DNS_SERVER",
		Doc: "Address and port of the domain's authoritative DNS server, which accepts dynamic updates (RFC 2136). hatchd then obtains one certificate for all names below the domain. Default: none; each name gets its own.",
		set: address(func(c *Config) *string { return &c.ACMEDNSServer }),
	},
	{
		Name: "acme_dns_key", Env: "HATCH_ACME_DNS_KEY", Secret: true,
		Doc: "TSIG key for these updates: its name, a colon and its secret in base64; HMAC-SHA256.",
		set: dnsKey,
	},
}
