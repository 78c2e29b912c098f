package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

const problemType = "application/problem+json"

// statusOf is the only table from kinds of errors to HTTP statuses.
var statusOf = map[errs.Kind]int{
	errs.Invalid:         http.StatusBadRequest,
	errs.Unauthenticated: http.StatusUnauthorized,
	errs.Forbidden:       http.StatusForbidden,
	errs.NotFound:        http.StatusNotFound,
	errs.Conflict:        http.StatusConflict,
	errs.Unmet:           http.StatusPreconditionFailed,
	errs.TooLarge:        http.StatusRequestEntityTooLarge,
	errs.TooMany:         http.StatusTooManyRequests,
	errs.Exhausted:       http.StatusInsufficientStorage,
	errs.Unsupported:     http.StatusNotImplemented,
	errs.Unavailable:     http.StatusServiceUnavailable,
	errs.TimedOut:        http.StatusConflict, // not 408 or 5xx, which many clients repeat by themselves
	errs.Internal:        http.StatusInternalServerError,
}

// problem is an api.Problem that huma can write.
type problem struct {
	api.Problem
	retryAfter time.Duration // 0 if a retry does not help
}

func (p *problem) Error() string           { return p.Problem.Error }
func (p *problem) GetStatus() int          { return p.Status }
func (*problem) ContentType(string) string { return problemType }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	if p.VMID != "" {
		h.Set("Location", "/vms/"+p.VMID)
	}
	return h
}

func newProblem(ctx context.Context, status int, code, message string) *problem {
	c := callerOf(ctx)
	c.problem = &problem{Problem: api.Problem{
		Title: http.StatusText(status), Status: status, Detail: message,
		Error: message, Code: code, RequestID: c.requestID,
	}}
	return c.problem
}

// problemOf returns err as the client may see it, and logs an internal error.
func (d *door) problemOf(ctx context.Context, err error) *problem {
	if media, ok := errors.AsType[*unsupportedMedia](err); ok {
		return media.problem(ctx)
	}
	if invalid, ok := errors.AsType[*invalidBody](err); ok {
		return foundProblem(ctx, http.StatusBadRequest, invalid.Error(), invalid.found)
	}
	e := readable(err)
	if e.Kind == errs.Internal {
		d.log.ErrorContext(ctx, "request failed", logkey.RequestID, callerOf(ctx).requestID, logkey.Error, err)
	}
	return worded(ctx, e)
}

// usualRetryAfter is what clients are told that are refused only for now. A host that is
// full stays so until something is stopped or deleted.
var usualRetryAfter = map[errs.Kind]time.Duration{
	errs.TooMany: 2 * time.Second, errs.Unavailable: 2 * time.Second, errs.Exhausted: 30 * time.Second,
}

func worded(ctx context.Context, e *errs.Error) *problem {
	p := newProblem(ctx, statusOf[e.Kind], cmp.Or(e.Code, e.Kind.String()), e.Message)
	p.Field, p.Hint, p.VMID = e.Field, e.Hint, e.VMID
	p.retryAfter = cmp.Or(e.RetryAfter, usualRetryAfter[e.Kind])
	return p
}

// readable returns err with a text for clients, a general one if it has none.
func readable(err error) *errs.Error {
	var e *errs.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errDiskFull
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errs.New(errs.Unavailable, "request_ended", "the request ended before its work did").
			WithHint("try again, or wait longer")
	}
	return errInternal
}

var errDiskFull = errs.New(errs.Exhausted, "disk_full", "the host's disk is full").
	WithHint("delete snapshots, VMs or images, or give the data directory more room")

var errInternal = errs.New(errs.Internal, "internal", "cannot do this because of an internal error").
	WithHint("hatchd's log has the cause under this request_id")

// writeProblem answers with err, outside of huma.
func (d *door) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	d.problemOf(r.Context(), err).write(w)
}

func (p *problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", problemType)
	maps.Copy(w.Header(), p.GetHeaders())
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // an error means that the client has gone
}

// unsupportedMedia is the one error that only HTTP knows.
type unsupportedMedia struct{}

func (*unsupportedMedia) Error() string { return "cannot read the body: its Content-Type is not JSON" }

func (e *unsupportedMedia) problem(ctx context.Context) *problem {
	p := newProblem(ctx, http.StatusUnsupportedMediaType, "unsupported_media_type", e.Error())
	p.Hint = "send Content-Type: application/json"
	return p
}

// asBadRequest makes huma answer 400 in place of 422.
func asBadRequest(ctx huma.Context, next func(huma.Context)) { next(badRequest{ctx}) }

// humaContext can be embedded: huma.Context has a method of its own name.
type humaContext = huma.Context

type badRequest struct{ humaContext }

func (c badRequest) SetStatus(status int) { c.humaContext.SetStatus(plainStatus(status)) }
func (c badRequest) Unwrap() huma.Context { return c.humaContext }

func plainStatus(status int) int {
	if status == http.StatusUnprocessableEntity {
		return http.StatusBadRequest
	}
	return status
}

// asProblem turns errors of huma's own checks into problems.
func asProblem(ctx huma.Context, _ string, body any) (any, error) {
	found, ok := body.(*huma.ErrorModel)
	if !ok {
		return body, nil
	}
	return foundProblem(ctx.Context(), plainStatus(found.Status), found.Detail, found.Errors), nil
}

// foundProblem returns the errors of huma's checks as a problem.
func foundProblem[E error](ctx context.Context, status int, detail string, found []E) *problem {
	fields := make([]api.ProblemField, 0, len(found))
	for _, err := range found {
		if e, ok := errors.AsType[*huma.ErrorDetail](err); ok {
			fields = append(fields, problemField(e))
		}
	}
	if len(fields) == 0 {
		return newProblem(ctx, status, codeOf(status, ""), detail)
	}
	first := fields[0]
	field := fieldOf(first.Location)
	p := newProblem(ctx, status, codeOf(status, field), sentence(field, first.Message))
	if first.Message == unknownField {
		p.Code = codeUnknownField // not one for each name that a client makes up
	}
	p.Field = field
	if len(fields) > 1 {
		p.Errors = fields
	}
	return p
}

// invalidBody has the errors of huma's checks of a WebSocket message.
type invalidBody struct{ found []error }

func (*invalidBody) Error() string { return "the message is not valid" }

const (
	unknownField     = "unknown field"
	codeUnknownField = "unknown_field"
)

// problemField rewords an error of huma's. It leaves out the value, which may be a
// secret or the whole body.
func problemField(e *huma.ErrorDetail) api.ProblemField {
	field := api.ProblemField{Location: e.Location, Message: e.Message}
	if name, message, marked := strings.Cut(e.Message, fieldMark); marked {
		field.Message = message
		if name != "" {
			field.Location = "body." + name
		}
	}
	if name, found := strings.CutPrefix(e.Message, "expected required property "); found {
		name = strings.TrimSuffix(name, " to be present")
		field = api.ProblemField{Location: e.Location + "." + name, Message: "is required"}
	}
	if e.Message == "unexpected property" {
		field.Message = unknownField
	}
	if before, number, found := strings.Cut(e.Message, "= "); found {
		field.Message = before + "= " + plainNumber(number)
	}
	return field
}

// plainNumber writes 6.7108864e+07 without an exponent.
func plainNumber(s string) string {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		return strconv.FormatFloat(n, 'f', -1, 64)
	}
	return s
}

// fieldOf returns a location without its first part (body, query …), if it has more
// than one.
func fieldOf(location string) string {
	_, field, found := strings.Cut(location, ".")
	if !found {
		return location
	}
	return field
}

func sentence(field, message string) string {
	if field == "" {
		return message
	}
	return field + ": " + message
}

// codeOf returns the code of an error of huma's checks: invalid_ and the outermost
// field.
func codeOf(status int, field string) string {
	if status != http.StatusBadRequest {
		return strings.ToLower(strings.ReplaceAll(http.StatusText(status), " ", "_"))
	}
	name, _, _ := strings.Cut(field, ".")
	name, _, _ = strings.Cut(name, "[")
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "invalid_request"
	}
	return "invalid_" + name
}

// noRoute answers 405 if another method has a route, else 404.
func (d *door) noRoute(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		allowed := allowedMethods(mux, r)
		if len(allowed) == 0 {
			d.writeProblem(w, r, errs.New(errs.NotFound, "no_such_route", "there is no route %s", r.URL.Path).
				WithHint("GET /docs lists every route"))
			return
		}
		allow := strings.Join(allowed, ", ")
		w.Header().Set("Allow", allow)
		p := newProblem(r.Context(), http.StatusMethodNotAllowed, "method_not_allowed",
			r.Method+" cannot be used on "+r.URL.Path+"; "+allow+" can")
		p.write(w)
	}
}

// allowedMethods returns the methods of the most specific path that fits a request's.
func allowedMethods(mux *http.ServeMux, r *http.Request) []string {
	var allowed []string
	fewest := math.MaxInt // wildcards
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		_, pattern := mux.Handler(other)
		wildcards := strings.Count(pattern, "{")
		if pattern == "/" || pattern == "" || wildcards > fewest {
			continue
		}
		if wildcards < fewest {
			allowed, fewest = nil, wildcards
		}
		allowed = append(allowed, method)
	}
	return allowed
}
