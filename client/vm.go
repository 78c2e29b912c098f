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
	"time"

	"github.com/hatchvm/hatch/api"
)

const vms = "/vms"

// CreateOptions are the options of CreateVM. The zero value waits until the VM is running.
type CreateOptions struct {
	Wait           string        // running (default) or ready
	WaitTimeout    time.Duration // at most 10 minutes; 0 for the server's default
	IdempotencyKey string        // makes it safe to send the same create again
}

// CreateVM creates a VM and waits for it as opts says. If the wait times out, the
// VM is returned without an error; check its State and Conditions.
func (c *Client) CreateVM(ctx context.Context, body api.CreateVM, opts CreateOptions) (api.VM, error) {
	return create[api.VM](ctx, c, body, opts)
}

func create[T any](ctx context.Context, c *Client, body api.CreateVM, opts CreateOptions) (T, error) {
	body.UserData, body.UserDataEncoding = encodeUserData(body.UserData, body.UserDataEncoding)
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

// ListOptions filter ListVMs. Zero fields do not filter.
type ListOptions struct {
	State    string
	Name     string
	Labels   map[string]string // all must match
	Label    []string          // KEY, KEY=VALUE or KEY!=VALUE; all must hold
	PageSize int               // VMs per request, 1 to 1000; 0 for the server's default
}

// ListVMs yields the VMs, newest first, one page per request, and ends at the
// first error.
func (c *Client) ListVMs(ctx context.Context, opts ListOptions) iter.Seq2[api.VM, error] {
	return pages[api.VM](ctx, c, vms, opts.query())
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	setString(q, "state", o.State)
	setString(q, "name", o.Name)
	for _, key := range slices.Sorted(maps.Keys(o.Labels)) {
		q.Add("label", key+"="+o.Labels[key])
	}
	for _, condition := range o.Label {
		q.Add("label", condition)
	}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	return q
}

// GetVM returns one VM.
func (c *Client) GetVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodGet, vms, id)
}

// UpdateVM changes a VM. Nil fields do not change, an empty name or description and a
// label that is nil are removed. Ports are all that the VM publishes from then on. Sizes
// can be changed of a stopped VM only.
func (c *Client) UpdateVM(ctx context.Context, id string, body api.UpdateVM) (api.VM, error) {
	return change[api.VM](ctx, c, vms, id, body)
}

// DeleteVM stops and deletes a VM and its disk.
func (c *Client) DeleteVM(ctx context.Context, id string) error {
	return c.remove(ctx, vms, id)
}

// StartVM starts a VM and returns once it runs.
func (c *Client) StartVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "start")
}

// StopVM shuts a VM down, by force after the server's timeout, and returns once it
// has stopped.
func (c *Client) StopVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "stop")
}

// StopVMWithin is StopVM with a timeout, of at most 10 minutes, after which the VM is
// killed; 0 kills it at once.
func (c *Client) StopVMWithin(ctx context.Context, id string, timeout time.Duration) (api.VM, error) {
	var out api.VM
	path, err := item(vms, id, "stop")
	if err == nil {
		_, err = c.do(ctx, call{method: http.MethodPost, path: path, query: url.Values{"timeout": {timeout.String()}}}, &out)
	}
	return out, err
}

// RestartVM stops a VM, if it runs, and starts it.
func (c *Client) RestartVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "restart")
}

// PauseVM halts a running VM's CPUs.
func (c *Client) PauseVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "pause")
}

// ResumeVM resumes a paused VM.
func (c *Client) ResumeVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "resume")
}

// maxWait is the longest wait of one request.
const maxWait = 10 * time.Minute

// WaitVM waits until a condition is true: a state, or ready, agent, cloud-init, ssh,
// port:N or http:PORT/PATH. A timeout of 0 is the server's default; for one of more
// than 10 minutes it sends several requests. See [IsTimeout].
func (c *Client) WaitVM(ctx context.Context, id, condition string, timeout time.Duration) (api.VM, error) {
	var out api.VM
	path, err := item(vms, id, "wait")
	if err != nil {
		return out, err
	}
	err = inSteps(timeout, func(step time.Duration) error {
		query := url.Values{"for": {condition}}
		setDuration(query, "timeout", step)
		_, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &out)
		return err
	})
	return out, err
}

// inSteps waits as often as one request may until the timeout has passed. A wait that
// times out early is the last: the server is ending.
func inSteps(timeout time.Duration, wait func(step time.Duration) error) error {
	for left := timeout; ; {
		step := min(left, maxWait)
		began := time.Now()
		err := wait(step)
		took := time.Since(began)
		left -= took
		if !IsTimeout(err) || left <= 0 || took < step {
			return err
		}
	}
}

// LogOptions are the options of VMLogs.
type LogOptions struct {
	Source string // console (default), vmm or cloud-init
	Tail   int    // lines from the end; 0 or less for all
	Follow bool   // return new output, until the context is done or the VM ends

	Since      time.Time // only lines of the console that began then or later; zero for all
	Timestamps bool      // before each line of the console when it began
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
	if !opts.Since.IsZero() {
		query.Set("since", opts.Since.UTC().Format(time.RFC3339Nano))
	}
	if opts.Timestamps {
		query.Set("timestamps", "true")
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
