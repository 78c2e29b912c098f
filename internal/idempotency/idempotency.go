// Package idempotency lets a client send a request again without making anything
// twice: a request with an Idempotency-Key carries it in its context, and the store
// keeps the key in the same transaction as the object that the request makes.
//
// So a key is stored exactly if its object is, also across a crash. No response is
// stored, and so no secret: a repeated request is answered from the object as it is
// then. It does not read headers, and does not answer: that is internal/server/httpapi.
// Start at [With] and [Store].
package idempotency

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

const (
	// MaxKey is the limit of a key, in bytes.
	MaxKey = 255
	// Lifetime is how long a key is remembered.
	Lifetime = 24 * time.Hour
	// Field is the name of a key in errors.
	Field = "Idempotency-Key"
	// CodeUsed is the code of an errs.Conflict: a concurrent request with the same key
	// was first. [Store] has what it has made.
	CodeUsed = "idempotency_key_used"
)

// Request is a request that may be repeated. The zero value is one without a key.
type Request struct {
	Owner string // the user that makes it, and that owns what it makes
	Key   string
	Hash  string // of what it asks for
}

type requestKey struct{}

// With returns a context whose changes make what r asks for.
func With(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// Of returns the request that ctx carries.
func Of(ctx context.Context) Request {
	r, _ := ctx.Value(requestKey{}).(Request)
	return r
}

// Store stores keys. The methods that store an object of a request store its key, too,
// and return errs.Conflict with [CodeUsed] if it is stored already.
type Store interface {
	// Made returns the ids of what an earlier request with the key of r has made, in
	// their order, nil if there is none. They may have been deleted since.
	// Errors: errs.Conflict with code idempotency_key_reused if that was another request.
	Made(ctx context.Context, r Request) (ids []string, err error)

	// Remember stores the key of the request that ctx carries, if it has one, for an
	// object that is not in the database.
	Remember(ctx context.Context, id string) error

	// Forget frees the key of an object that was not made after all.
	Forget(ctx context.Context, id string) error
}

// Used returns the error of a key that is stored already.
func Used(cause error) error {
	return errs.New(errs.Conflict, CodeUsed, "%s: another request with this key is in progress", Field).
		WithField(Field).WithHint("send it again").WithCause(cause)
}

// Reused returns the error of a key that was used for another request.
func Reused() error {
	return errs.New(errs.Conflict, "idempotency_key_reused", "%s: this key was already used with another request", Field).
		WithField(Field).WithHint("send the same request again, or use a new key")
}

// InProgress returns the error of a request whose object is still being made.
func InProgress(retryAfter time.Duration) error {
	return errs.New(errs.Conflict, "idempotency_in_progress", "%s: an earlier request with this key is still in progress", Field).
		WithField(Field).WithHint("send it again in a moment").WithRetryAfter(retryAfter)
}

// Gone returns the error of a request whose object does not exist any more.
func Gone(id string) error {
	return errs.New(errs.Conflict, "idempotency_object_gone", "%s: %s, which an earlier request with this key has made, does not exist any more", Field, id).
		WithField(Field).WithHint("see what that request did; only a new key makes it again")
}
