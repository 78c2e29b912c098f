// Package client calls Hatch's REST API: one method for each route, with the types
// of package api.
//
// It caches nothing, and retries nothing but the connections of [ExecSession] and
// [Client.StreamEvents], unless [WithRetries] says so. Only [Client.WaitVM] may send several requests. A call ends
// when its context does. Errors that the server explains are of type [*Error]; see
// [IsNotFound] and similar functions. Start at [New].
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Limits of a response body, in bytes.
const (
	maxResponse = 64 << 20
	maxError    = 64 << 10
)

// Client calls one Hatch server. It is safe for concurrent use.
type Client struct {
	base      string // without a trailing slash
	server    string // as the caller has named it, for errors
	local     bool   // the server is on this host
	key       string
	userAgent string
	http      *http.Client
	retries   int
}

// Option configures a Client.
type Option func(*Client)

// WithHTTPClient makes the Client use c, for example for TLS settings. A timeout in
// c would also cut streams; leave it zero and bound each call by its context. For a
// unix:// server its Transport must connect by [DialUnix].
func WithHTTPClient(c *http.Client) Option {
	return func(client *Client) { client.http = c }
}

// WithUserAgent sets the User-Agent header.
func WithUserAgent(name string) Option {
	return func(client *Client) { client.userAgent = name }
}

// WithRetries makes the Client repeat a call up to n times that the server refuses with
// 429, 503 or 507, or because an earlier one with its idempotency key is in progress,
// after the time that its Retry-After says, while the call's context lasts. Only calls that are safe to repeat are: those that change nothing or delete,
// and POSTs with an idempotency key.
func WithRetries(n int) Option {
	return func(client *Client) { client.retries = n }
}

// New returns a Client of the server at base, such as http://localhost:8080, or of
// hatchd's socket on this host, such as unix:///run/hatch/hatchd.sock. With an empty key
// only [Client.Health] works, and the calls of a process that the socket knows.
func New(base, key string, opts ...Option) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("cannot use %q as the server's address: not a URL", base)
	}
	if u.Scheme != "unix" && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return nil, fmt.Errorf("cannot use %q as the server's address: it must look like http://HOST:PORT or unix:///PATH", base)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("cannot use the server's address: it must have no user, query or fragment")
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("cannot use the API key: it has characters that no key has")
	}
	c := &Client{
		base: strings.TrimRight(u.String(), "/"), server: strings.TrimRight(u.String(), "/"), key: key, userAgent: "hatch-client",
		// Redirects are not followed: hatchd sends none, so the address is wrong.
		http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	addr, err := netip.ParseAddr(u.Hostname())
	c.local = u.Hostname() == "localhost" || err == nil && addr.IsLoopback()
	if u.Scheme == "unix" {
		if err := c.useSocket(u); err != nil {
			return nil, err
		}
	}
	for _, opt := range opts {
		opt(c)
	}
	return c, nil
}

type idempotencyKey struct{}

// WithIdempotencyKey returns a context for one call of a method that makes something,
// such as [Client.ForkVM] or [Client.CreateKey]: the call can be repeated with the same
// key, and makes nothing twice. Use another key for each object.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey{}, key)
}

// call is one request.
type call struct {
	method string
	path   string // escaped; starts with a slash
	query  url.Values
	header http.Header
	body   any // sent as JSON; nil for none

	content     io.Reader // sent unchanged, instead of body
	contentType string    // of content
}

// do sends the call and decodes the response into out, if out is not nil.
func (c *Client) do(ctx context.Context, req call, out any) (http.Header, error) {
	resp, err := c.send(ctx, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if out == nil {
		return resp.Header, nil
	}
	return resp.Header, decode(resp.Body, out)
}

// stream sends the call and returns the body of the response.
func (c *Client) stream(ctx context.Context, req call) (io.ReadCloser, error) {
	resp, err := c.send(ctx, req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// send sends the call, and repeats it as [WithRetries] says. A status other than 2xx is
// an error.
func (c *Client) send(ctx context.Context, req call) (*http.Response, error) {
	for left := c.retries; ; left-- {
		resp, err := c.sendOnce(ctx, req)
		refused, ok := errors.AsType[*Error](err)
		if !ok || left <= 0 || refused.RetryAfter == 0 || !slices.Contains(retriedStatus, refused.Status()) && !HasCode(err, "idempotency_in_progress") {
			return resp, err
		}
		keyed := c.headers(ctx, req).Get("Idempotency-Key") != ""
		if req.content != nil || req.method == http.MethodPatch || (req.method == http.MethodPost && !keyed) {
			return nil, err // it might do its work twice, or the content has been read
		}
		if (&backoff{}).wait(ctx, err) != nil {
			return nil, err
		}
	}
}

// retriedStatus are the statuses of requests that were not begun.
var retriedStatus = []int{http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusInsufficientStorage}

func (c *Client) sendOnce(ctx context.Context, req call) (*http.Response, error) {
	resp, err := c.roundTrip(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func (c *Client) roundTrip(ctx context.Context, req call) (*http.Response, error) {
	hr, err := c.request(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(hr)
	if err != nil {
		return nil, Unreachable(c.server, err)
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, req call) (*http.Request, error) {
	var body io.Reader
	if req.body != nil {
		b, err := json.Marshal(req.body)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the request: %w", err)
		}
		if replacedBytes(b) {
			return nil, errNotText
		}
		body = bytes.NewReader(b)
	}
	if req.content != nil {
		body = io.NopCloser(req.content) // the caller closes it
	}
	hr, err := http.NewRequestWithContext(ctx, req.method, c.url(req), body)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	hr.Header = c.headers(ctx, req)
	return hr, nil
}

var errNotText = errors.New("cannot encode the request: a text in it is not UTF-8; only user data, " +
	"and the arguments, variables' values and directory of a command, may have other bytes")

// replacedBytes reports whether json.Marshal has replaced bytes that are not UTF-8. It
// escapes the character that it puts there, and no other one of its kind.
func replacedBytes(b []byte) bool {
	escaped := []byte(`\ufffd`)
	// Behind an escaped backslash the same letters are text.
	return bytes.Contains(b, escaped) && bytes.Contains(bytes.ReplaceAll(b, []byte(`\\`), nil), escaped)
}

func (c *Client) url(req call) string {
	if len(req.query) == 0 {
		return c.base + req.path
	}
	return c.base + req.path + "?" + req.query.Encode()
}

func (c *Client) headers(ctx context.Context, req call) http.Header {
	h := req.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if key, ok := ctx.Value(idempotencyKey{}).(string); ok && req.method == http.MethodPost {
		h.Set("Idempotency-Key", key)
	}
	h.Set("User-Agent", c.userAgent)
	if c.local {
		h.Set("Accept-Encoding", "identity") // compression would cost more than it saves
	}
	if c.key != "" {
		h.Set("Authorization", "Bearer "+c.key)
	}
	if req.body != nil {
		h.Set("Content-Type", "application/json")
	}
	if req.content != nil {
		h.Set("Content-Type", req.contentType)
		h.Set("Expect", "100-continue") // a server that refuses the request gets no content
	}
	return h
}

// conditions returns the headers that make a call depend on its object's state.
func conditions(ifMatch, ifNoneMatch string) http.Header {
	h := http.Header{}
	if ifMatch != "" {
		h.Set("If-Match", ifMatch)
	}
	if ifNoneMatch != "" {
		h.Set("If-None-Match", ifNoneMatch)
	}
	return h
}

func decode(r io.Reader, out any) error {
	limited := &io.LimitedReader{R: r, N: maxResponse}
	if err := json.NewDecoder(limited).Decode(out); err != nil {
		if limited.N == 0 {
			return fmt.Errorf("cannot read the server's response: it is larger than %d bytes", maxResponse)
		}
		return fmt.Errorf("cannot read the server's response: %w", err)
	}
	return nil
}

// item returns the path of one object and, with verb, of an action on it.
func item(collection, id string, verb ...string) (string, error) {
	if id == "" || id == "." || id == ".." {
		return "", fmt.Errorf("cannot use %q as an id", id)
	}
	return strings.Join(append([]string{collection, url.PathEscape(id)}, verb...), "/"), nil
}

// fetch calls method on one object, or on verb of it, and returns the response.
func fetch[T any](ctx context.Context, c *Client, method, collection, id string, verb ...string) (T, error) {
	var out T
	path, err := item(collection, id, verb...)
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, call{method: method, path: path}, &out)
	return out, err
}

// post sends body to path and returns the response.
func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	var out T
	_, err := c.do(ctx, call{method: http.MethodPost, path: path, body: body}, &out)
	return out, err
}

// change sends body as a change of one object, and returns what it is then.
func change[T any](ctx context.Context, c *Client, collection, id string, body any) (T, error) {
	var out T
	path, err := item(collection, id)
	if err != nil {
		return out, err
	}
	_, err = c.do(ctx, call{method: http.MethodPatch, path: path, body: body}, &out)
	return out, err
}

// list returns all objects at path.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	all := []T{}
	for object, err := range pages[T](ctx, c, path, query) {
		if err != nil {
			return nil, err
		}
		all = append(all, object)
	}
	return all, nil
}

// pages yields the objects at path, one page per request, and ends at the first error.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := maps.Clone(query)
		for {
			var page []T
			header, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &page)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, object := range page {
				if !yield(object, nil) {
					return
				}
			}
			next := nextCursor(header.Get("Link"))
			if next == "" || len(page) == 0 {
				return
			}
			if query == nil {
				query = url.Values{}
			}
			query.Set("after", next)
		}
	}
}

// nextCursor returns the cursor in a Link header. The rest of the link is not used,
// so that no response can send the key to another server.
func nextCursor(link string) string {
	target, params, found := strings.Cut(link, ">")
	if !found || !strings.Contains(params, `rel="next"`) {
		return ""
	}
	u, err := url.Parse(strings.TrimPrefix(strings.TrimSpace(target), "<"))
	if err != nil {
		return ""
	}
	return u.Query().Get("after")
}

// remove deletes one object.
func (c *Client) remove(ctx context.Context, collection, id string) error {
	path, err := item(collection, id)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: path}, nil)
	return err
}
