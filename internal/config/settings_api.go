package config

// apiSettings are those of the REST API's doors.
var apiSettings = []Setting{
	{
		Name: "http_addr", Env: "HATCH_HTTP_ADDR", Default: "127.0.0.1:8080",
		Doc: "Address and port of the REST API. `:8080` listens on every interface; then serve it over TLS (`HATCH_HTTP_TLS_CERT`), or put a TLS proxy in front.",
		set: address(func(c *Config) *string { return &c.HTTPAddr }),
	},
	{
		Name: "http_tls_cert", Env: "HATCH_HTTP_TLS_CERT",
		Doc: "File of the certificate, with its chain, in PEM, that the REST API is served with over TLS on `HATCH_HTTP_ADDR`; there is no HTTP without TLS then. It is read again when it changes.",
		set: absolute(func(c *Config) *string { return &c.HTTPTLSCert }),
	},
	{
		Name: "http_tls_key", Env: "HATCH_HTTP_TLS_KEY",
		Doc: "File of that certificate's key, in PEM; set it together with the certificate.",
		set: absolute(func(c *Config) *string { return &c.HTTPTLSKey }),
	},
	{
		Name: "http_tls_client_ca", Env: "HATCH_HTTP_TLS_CLIENT_CA",
		Doc: "File of certificates in PEM, one of which must have signed the client's certificate: others cannot connect to `HATCH_HTTP_ADDR`. Clients need an API key, too. It is read again when it changes. Default: clients need no certificate.",
		set: absolute(func(c *Config) *string { return &c.HTTPTLSClientCA }),
	},
	{
		Name: "socket", Env: "HATCH_SOCKET",
		Doc: "Path of a unix socket that serves the REST API, too: root, hatchd's user and members of the group `hatch` need no API key there, and are the admin. `off` serves none. Default: `/run/hatch/hatchd.sock` with the default data directory, else, or where hatchd cannot make that, `hatchd.sock` in the data directory.",
		set: socket,
	},
	{
		Name: "http_max_connections", Env: "HATCH_HTTP_MAX_CONNECTIONS", Default: "1024",
		Doc: "Connections to the REST API at a time, 16 to 1048576; streams and WebSockets are among them. An eighth is for this host's own processes only, another for other hosts only. One user may use half.",
		set: integer(16, 1<<20, func(c *Config) *int { return &c.HTTPMaxConns }),
	},
	{
		Name: "http_max_client_connections", Env: "HATCH_HTTP_MAX_CLIENT_CONNECTIONS", Default: "256",
		Doc: "Connections to the REST API at a time from one IPv4 address, or one IPv6 /64, of another host, 1 to 1048576.",
		set: integer(1, 1<<20, func(c *Config) *int { return &c.HTTPMaxClientConns }),
	},
	{
		Name: "http_body_mib", Env: "HATCH_HTTP_BODY_MIB", Default: "32",
		Doc: "Memory for the bodies of all requests in progress, in MiB, 4 to 65536; one user may use half. Files that are written are not among them.",
		set: integer(4, 1<<16, func(c *Config) *int64 { return &c.HTTPBodyMiB }),
	},
	{
		Name: "cors_origins", Env: "HATCH_CORS_ORIGINS",
		Doc: "Origins whose pages may call the REST API from a browser, separated by commas, such as `https://console.example.org`; `*` allows all. The page needs an API key of its own: browsers are never asked to send cookies or passwords. Default: none.",
		set: origins(func(c *Config) *[]string { return &c.CORSOrigins }),
	},
}
