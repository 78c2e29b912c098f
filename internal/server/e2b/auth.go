package e2b

import (
	"net/http"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// keyHeader has the API key. Old tools send another credential beside it, in
// Authorization, which is ignored.
const keyHeader = "X-Api-Key"

// authenticate returns the caller of a request for the control plane. Wrong keys are
// counted for each client, so that guessing costs hatchd little; a key that has
// authenticated before is always accepted.
func (d *Door) authenticate(r *http.Request) (caller access.Principal, err error) {
	secret := r.Header.Get(keyHeader)
	if secret == "" {
		return access.Principal{}, errs.New(errs.Unauthenticated, "key_missing", "cannot serve this without an API key").
			WithHint("set E2B_API_KEY to a key of this server: hatch key create --e2b NAME makes one")
	}
	from := admission.AddressOf(r.RemoteAddr)
	if caller, known := d.cfg.Access.Known(secret, from); known {
		return caller, nil
	}
	wait, err := d.tries.Attempt(admission.ClientAt(from), func() (err error) {
		caller, err = d.cfg.Access.Authenticate(r.Context(), secret, from)
		return err
	})
	if wait > 0 {
		return access.Principal{}, errs.New(errs.TooMany, "too_many_tries", "cannot check this API key: too many wrong keys came from this client").WithRetryAfter(wait)
	}
	return caller, err
}

// tokensFor reports whether a caller may have the tokens of its sandboxes, with which it
// could run commands and write files.
func tokensFor(p access.Principal) bool {
	return p.Rights.Covers(access.RightsOf(access.Write(access.Exec), access.Read(access.Files), access.Write(access.Files)))
}
