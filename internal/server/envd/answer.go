package envd

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// gone is the phrase by which the SDKs know that a sandbox does not run. They look for it
// in the answers of any port.
const gone = "The sandbox was not found"

// NotFound answers a request for a sandbox that does not exist, or sleeps.
func NotFound(w http.ResponseWriter, id string) {
	writeJSON(w, http.StatusBadGateway, map[string]any{"sandboxId": id, "message": gone, "code": http.StatusBadGateway})
}

// PortClosed answers a request for a port of a sandbox that no program serves.
func PortClosed(w http.ResponseWriter, id string, port int) {
	writeJSON(w, http.StatusBadGateway, map[string]any{
		"sandboxId": id, "message": "The sandbox is running but port is not open", "port": port, "code": http.StatusBadGateway,
	})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// refuse answers a request that is no call of Connect with an error.
func refuse(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]any{"code": status, "message": message})
}

// fail answers a request with an error.
func (e *Envd) fail(w http.ResponseWriter, r *http.Request, c call, err error) {
	explained := e.explain(r.Context(), c, err)
	switch {
	case isCall(r):
		connect.WriteError(w, explained)
	case errs.HasCode(err, "guest_disk_full"):
		refuse(w, http.StatusInsufficientStorage, explained.Message)
	default:
		refuse(w, explained.Code.Status(), explained.Message)
	}
}

// unauthorized answers a request without a valid token, or user.
func unauthorized(w http.ResponseWriter, r *http.Request, message string) {
	if isCall(r) {
		connect.WriteError(w, connect.Errorf(connect.Unauthenticated, "%s", message))
		return
	}
	refuse(w, http.StatusUnauthorized, message)
}

// byCode are the codes of errors whose kind says too little.
var byCode = map[string]connect.Code{
	"file_exists":         connect.AlreadyExists,
	"is_a_directory":      connect.InvalidArgument,
	"not_a_directory":     connect.InvalidArgument,
	"not_a_file":          connect.InvalidArgument,
	"directory_not_empty": connect.FailedPrecondition,
	"other_filesystem":    connect.FailedPrecondition,
	"process_ended":       connect.NotFound,
	"stdin_closed":        connect.Internal,
	"no_terminal":         connect.Internal,
	"guest_disk_full":     connect.Internal, // resource_exhausted would be a rate limit
}

var byKind = map[errs.Kind]connect.Code{
	errs.Invalid: connect.InvalidArgument, errs.Unauthenticated: connect.Unauthenticated, errs.Forbidden: connect.PermissionDenied,
	errs.NotFound: connect.NotFound, errs.Conflict: connect.FailedPrecondition, errs.Unmet: connect.FailedPrecondition,
	errs.TooLarge: connect.OutOfRange, errs.TooMany: connect.ResourceExhausted, errs.Exhausted: connect.ResourceExhausted,
	errs.Unsupported: connect.Unimplemented, errs.Unavailable: connect.Unavailable, errs.TimedOut: connect.DeadlineExceeded,
}

// explain returns what the caller gets for an error, and logs an internal one.
func (e *Envd) explain(ctx context.Context, c call, err error) *connect.Error {
	if known, ok := errors.AsType[*connect.Error](err); ok {
		return known
	}
	known, ok := errs.As(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return connect.Errorf(connect.DeadlineExceeded, "the time that the caller gave has passed")
	case errors.Is(err, context.Canceled): // by hatchd: a client that has left gets no answer
		return connect.Errorf(connect.Unavailable, "hatchd is shutting down")
	case !ok || known.Kind == errs.Internal:
		e.cfg.Log.ErrorContext(ctx, "a request for a sandbox failed", logkey.VM, c.VMID, logkey.Error, err)
		return connect.Errorf(connect.Internal, "%s", errs.Public(err))
	case known.Code == "invalid_user", known.Code == "invalid_owner":
		return errUser(c.account())
	case known.Code == "vm_not_found", known.Code == "vm_not_running", known.Code == "vm_paused":
		return connect.Errorf(connect.Unavailable, gone)
	}
	code, ok := byCode[known.Code]
	if !ok {
		code = byKind[known.Kind]
	}
	return connect.Errorf(code, "%s", known.Message)
}

func errUser(name string) *connect.Error {
	return connect.Errorf(connect.Unauthenticated, "invalid username: '%s': the sandbox's image has no such user", errs.Brief(name))
}
