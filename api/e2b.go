package api

// E2B is the response to GET /e2b: where the client libraries of E2B reach the server.
type E2B struct {
	Addr   string `json:"addr" doc:"Address and port of the door without TLS." example:"127.0.0.1:3000"`
	Domain string `json:"domain" doc:"Domain that the host names of sandboxes are below, with a port unless it is that of https." example:"apps.example.org"`
	URL    string `json:"url,omitempty" doc:"URL of the API over TLS; absent without TLS." example:"https://api.apps.example.org"`
}
