package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

// SleepVM saves a running VM's memory and ends its VMM.
func (c *Client) SleepVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "sleep")
}

// SleepVMDurably is SleepVM, and returns once the memory is on the host's disk, where a
// power cut does not lose it.
func (c *Client) SleepVMDurably(ctx context.Context, id string) (api.VM, error) {
	path, err := item(vms, id, "sleep")
	if err != nil {
		return api.VM{}, err
	}
	var v api.VM
	_, err = c.do(ctx, call{method: http.MethodPost, path: path, query: url.Values{"durable": {"true"}}}, &v)
	return v, err
}

// WakeVM continues a sleeping VM where it was.
func (c *Client) WakeVM(ctx context.Context, id string) (api.VM, error) {
	return fetch[api.VM](ctx, c, http.MethodPost, vms, id, "wake")
}
