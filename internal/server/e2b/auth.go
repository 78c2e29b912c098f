package e2b

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// keyHeader has the API key. Old tools send another credential beside it, in
// Authorization, which is ignored.
const keyHeader = "X-Api-Key"

// authenticate returns the caller of a request for the control plane. Wrong keys are
// counted for each client, so that guessing costs hatchd little; a key that has
// authenticated before is always accepted.
func (d *Door) authenticate(r *http.Request) (access.Principal, error) {
	secret := r.Header.Get(keyHeader)
	if secret == "" {
		return access.Principal{}, errs.New(errs.Unauthenticated, "key_missing", "cannot serve this without an API key").
			WithHint("set E2B_API_KEY to a key of this server: hatch key create --e2b NAME makes one")
	}
	from := addressOf(r)
	if caller, known := d.cfg.Access.Known(secret, from); known {
		return caller, nil
	}
	client := admission.ClientAt(from)
	if wait := d.tries.Wait(client); wait > 0 && client != admission.Local {
		return access.Principal{}, tooManyTries(wait)
	}
	caller, err := d.cfg.Access.Authenticate(r.Context(), secret, from)
	if errs.Is(err, errs.Unauthenticated) {
		if wait := d.tries.Failed(client); wait > 0 {
			return access.Principal{}, tooManyTries(wait)
		}
	}
	return caller, err
}

func tooManyTries(wait time.Duration) error {
	return errs.New(errs.TooMany, "too_many_tries", "cannot check this API key: too many wrong keys came from this client").WithRetryAfter(wait)
}

// addressOf returns the address of a client, the zero one if it is not of IP.
func addressOf(r *http.Request) netip.Addr {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// causedBy returns a context whose changes are the caller's.
func causedBy(ctx context.Context, p access.Principal) context.Context {
	return event.WithCause(ctx, event.Cause{Actor: event.Actor{Kind: event.Key, ID: p.KeyID, Name: p.KeyName}})
}

// tokensFor reports whether a caller may have the tokens of its sandboxes, with which it
// could run commands and write files.
func tokensFor(p access.Principal) bool {
	return p.Rights.Covers(access.RightsOf(access.Write(access.Exec), access.Read(access.Files), access.Write(access.Files)))
}
