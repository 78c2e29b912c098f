package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

// RunExec runs a command in a VM and returns once it has ended. If ctx is done
// first, the command is killed. body.Background must not be set.
func (c *Client) RunExec(ctx context.Context, vmID string, body api.RunExec) (api.ExecResult, error) {
	if body.Background {
		return api.ExecResult{}, errors.New("cannot wait for a background command; use StartExec")
	}
	path, err := item(vms, vmID, "exec")
	if err != nil {
		return api.ExecResult{}, err
	}
	return post[api.ExecResult](ctx, c, path, encodeCommand(body))
}

// StartExec starts a command in the background and returns at once.
func (c *Client) StartExec(ctx context.Context, vmID string, body api.RunExec) (api.Exec, error) {
	body.Background = true
	path, err := item(vms, vmID, "exec")
	if err != nil {
		return api.Exec{}, err
	}
	return post[api.Exec](ctx, c, path, encodeCommand(body))
}

// ListExecs returns the commands that the guest keeps, newest first.
func (c *Client) ListExecs(ctx context.Context, vmID string) ([]api.Exec, error) {
	path, err := item(vms, vmID, "execs")
	if err != nil {
		return nil, err
	}
	return list[api.Exec](ctx, c, path, nil)
}

// GetExec returns one command.
func (c *Client) GetExec(ctx context.Context, vmID, id string) (api.Exec, error) {
	execs, err := execsOf(vmID)
	if err != nil {
		return api.Exec{}, err
	}
	return fetch[api.Exec](ctx, c, http.MethodGet, execs, id)
}

// DeleteExec kills a command and its children, and deletes its record.
func (c *Client) DeleteExec(ctx context.Context, vmID, id string) error {
	execs, err := execsOf(vmID)
	if err != nil {
		return err
	}
	return c.remove(ctx, execs, id)
}

// SignalExec sends a signal, by name or number, to a command and its children.
func (c *Client) SignalExec(ctx context.Context, vmID, id, signal string) error {
	return c.postExec(ctx, vmID, id, "signal", api.SignalExec{Signal: signal})
}

// WriteExec writes to a command's stdin.
func (c *Client) WriteExec(ctx context.Context, vmID, id string, input api.ExecInput) error {
	return c.postExec(ctx, vmID, id, "stdin", input)
}

// ResizeExec changes the size of a command's terminal.
func (c *Client) ResizeExec(ctx context.Context, vmID, id string, size api.TerminalSize) error {
	return c.postExec(ctx, vmID, id, "resize", size)
}

func (c *Client) postExec(ctx context.Context, vmID, id, verb string, body any) error {
	execs, err := execsOf(vmID)
	if err != nil {
		return err
	}
	path, err := item(execs, id, verb)
	if err != nil {
		return err
	}
	_, err = post[api.Done](ctx, c, path, body)
	return err
}

// ExecLogs returns a command's output so far and, with follow, new output until it
// ends. The caller closes it.
func (c *Client) ExecLogs(ctx context.Context, vmID, id string, follow bool) (io.ReadCloser, error) {
	execs, err := execsOf(vmID)
	if err != nil {
		return nil, err
	}
	path, err := item(execs, id, "logs")
	if err != nil {
		return nil, err
	}
	req := call{method: http.MethodGet, path: path}
	if follow {
		req.query = url.Values{"follow": {"true"}}
	}
	return c.stream(ctx, req)
}

// execsOf returns the path of a VM's execs.
func execsOf(vmID string) (string, error) {
	return item(vms, vmID, "execs")
}
