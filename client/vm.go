package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
)

const vms = "/vms"

// CreateOptions say how CreateVM behaves. The zero value waits until the VM is running.
type CreateOptions struct {
	Wait           string        // running (default) or ready
	WaitTimeout    time.Duration // at most 10 minutes; 0 for the server's default
	IdempotencyKey string        // makes it safe to send the same create again
}

// CreateVM creates a VM and waits for it as opts says. When that wait runs
// out, the VM is returned as it is then; look at its State and Conditions.
func (c *Client) CreateVM(ctx context.Context, body api.CreateVM, opts CreateOptions) (api.VM, error) {
	return create[api.VM](ctx, c, body, opts)
}

func create[T any](ctx context.Context, c *Client, body api.CreateVM, opts CreateOptions) (T, error) {
	req := call{method: http.MethodPost, path: vms, body: body, query: url.Values{}, header: http.Header{}}
	setString(req.query, "wait", opts.Wait)
	setDuration(req.query, "wait_timeout", opts.WaitTimeout)
	if opts.IdempotencyKey != "" {
		req.header.Set("Idempotency-Key", opts.IdempotencyKey)
	}
	var out T
	_, err := c.do(ctx, req, &out)
	return out, err
}

// ListOptions narrow ListVMs. Zero fields do not narrow.
type ListOptions struct {
	State    string
	Name     string
	Labels   map[string]string // all must match
	PageSize int               // VMs per request, 1 to 1000; 0 for the server's default
}

// ListVMs yields the VMs, newest first, one page per request, and ends at the
// first error.
func (c *Client) ListVMs(ctx context.Context, opts ListOptions) iter.Seq2[api.VM, error] {
	return func(yield func(api.VM, error) bool) {
		query := opts.query()
		for {
			page, next, err := c.vmPage(ctx, query)
			if err != nil {
				yield(api.VM{}, err)
				return
			}
			for _, vm := range page {
				if !yield(vm, nil) {
					return
				}
			}
			if next == "" || len(page) == 0 {
				return
			}
			query.Set("after", next)
		}
	}
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	setString(q, "state", o.State)
	setString(q, "name", o.Name)
	for _, key := range slices.Sorted(maps.Keys(o.Labels)) {
		q.Add("label", key+"="+o.Labels[key])
	}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	return q
}

// vmPage returns one page and the cursor of the next one, "" after the last.
func (c *Client) vmPage(ctx context.Context, query url.Values) ([]api.VM, string, error) {
	var page []api.VM
	header, err := c.do(ctx, call{method: http.MethodGet, path: vms, query: query}, &page)
	if err != nil {
		return nil, "", err
	}
	return page, nextCursor(header.Get("Link")), nil
}

// nextCursor reads the cursor of the next page off a Link header. Only the
// cursor is taken of it, so that no answer can send the key elsewhere.
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

// GetVM returns one VM.
func (c *Client) GetVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodGet, vms, id)
}

// DeleteVM stops and deletes a VM, disk and all.
func (c *Client) DeleteVM(ctx context.Context, id string) error {
	return c.remove(ctx, vms, id)
}

// StartVM starts a VM and returns once it runs.
func (c *Client) StartVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "start")
}

// StopVM stops a VM gracefully, by force after the server's timeout, and
// returns once it has stopped.
func (c *Client) StopVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "stop")
}

// RestartVM stops a VM, when it runs, and starts it.
func (c *Client) RestartVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "restart")
}

// PauseVM halts a running VM's CPUs.
func (c *Client) PauseVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "pause")
}

// ResumeVM lets a paused VM run on.
func (c *Client) ResumeVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "resume")
}

// WaitVM waits until condition holds: a state, or ready, agent, cloud-init,
// ssh, port:N or http:PORT/PATH. timeout is at most 10 minutes, 0 for the
// server's default; [IsTimeout] tells when it ran out.
func (c *Client) WaitVM(ctx context.Context, id, condition string, timeout time.Duration) (api.VM, error) {
	var out api.VM
	path, err := item(vms, id, "wait")
	if err != nil {
		return out, err
	}
	query := url.Values{"for": {condition}}
	setDuration(query, "timeout", timeout)
	_, err = c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &out)
	return out, err
}

// LogOptions say what of a log is wanted.
type LogOptions struct {
	Source string // console (default), vmm or cloud-init
	Tail   int    // lines from the end; 0 or less for all
	Follow bool   // go on with what comes, until the context or the VM ends
}

// VMLogs returns a log of a VM. The caller closes it.
func (c *Client) VMLogs(ctx context.Context, id string, opts LogOptions) (io.ReadCloser, error) {
	path, err := item(vms, id, "logs")
	if err != nil {
		return nil, err
	}
	query := url.Values{"source": {cmp.Or(opts.Source, "console")}}
	if opts.Tail > 0 {
		query.Set("tail", strconv.Itoa(opts.Tail))
	}
	if opts.Follow {
		query.Set("follow", "true")
	}
	return c.stream(ctx, call{method: http.MethodGet, path: path, query: query})
}

func setString(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

func setDuration(q url.Values, name string, d time.Duration) {
	if d > 0 {
		q.Set(name, fmt.Sprint(d))
	}
}
