package wire

import "context"

// OpTrim gives blocks of the VM's disk that the guest does not use back to the host:
// nothing → nothing, once that is done. It continues if hatchd does not wait.
const OpTrim Op = "trim"

// Trim has the guest trim the VM's disk.
func (c *Client) Trim(ctx context.Context) error { return c.call(ctx, OpTrim, nil, nil) }

// TrimHandler trims the VM's disk. A [Handler] that does not implement it does not know
// the operation.
type TrimHandler interface {
	Trim() error
}

// trim serves OpTrim. It reports whether it served the request.
func (r request) trim(asked Request) bool {
	handler, ok := r.handler.(TrimHandler)
	if !ok || asked.Op != OpTrim {
		return false
	}
	r.answer(nil, handler.Trim())
	return true
}
