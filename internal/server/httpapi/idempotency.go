package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
)

const idempotencyText = `

With an Idempotency-Key the same request may be sent again: it makes nothing twice. The response has what the first request made, as it is now and without a secret, and the header Idempotency-Replayed. ` +
	`The same key with another request is refused with 409 and code idempotency_key_reused. A key is remembered for 24 hours, also after what it made was deleted: then a repeated request is refused with idempotency_object_gone. The key of a request that failed is free again.`

// Requests finds what earlier requests with an Idempotency-Key have made.
// [idempotency.Store] has it.
type Requests interface {
	Made(ctx context.Context, r idempotency.Request) (ids []string, err error)
	Remember(ctx context.Context, id string) error
}

// Replay is in the output of each route that makes something. It is exported for huma,
// which ignores unexported embedded structs.
type Replay struct {
	Replayed string `header:"Idempotency-Replayed" doc:"true if an earlier request with this Idempotency-Key has made what the response shows; otherwise absent."`
}

func (r *Replay) markReplayed() { r.Replayed = "true" }

// handler serves a route.
type handler[I, O any] func(ctx context.Context, in *I) (*O, error)

// once makes a table entry of a handler that makes something, and obeys the
// Idempotency-Key: replay answers with what an earlier request has made.
func once[I, O any, P interface {
	*O
	markReplayed()
}](make handler[I, O], replay func(ctx context.Context, in *I, made []string) (*O, error)) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.Description += idempotencyText
		op.Middlewares = append(op.Middlewares, d.carryKey)
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: idempotency.Field, In: "header", Description: "1 to 255 visible ASCII characters, chosen by the client for this request.",
			Schema: &huma.Schema{Type: huma.TypeString},
		})
		on(func(ctx context.Context, in *I) (*O, error) {
			made, err := d.made.Made(ctx, idempotency.Of(ctx))
			if err == nil && made == nil {
				var out *O
				if out, err = make(ctx, in); !errs.HasCode(err, idempotency.CodeUsed) {
					return out, err
				}
				made, err = d.made.Made(ctx, idempotency.Of(ctx))
			}
			if err == nil && made == nil {
				err = errEarlierFailed
			}
			if err != nil {
				return nil, err
			}
			out, err := replay(ctx, in, made)
			if err != nil {
				return nil, d.replayError(ctx, made, err)
			}
			P(out).markReplayed()
			return out, nil
		})(d, described, op)
	}
}

var errEarlierFailed = errs.New(errs.Conflict, "earlier_failed", "%s: an earlier request with this key was still running, and has failed", idempotency.Field).
	WithField(idempotency.Field).WithHint("send it again")

// replayError says what has become of an object that is not found.
func (d *door) replayError(ctx context.Context, made []string, err error) error {
	if !errs.Is(err, errs.NotFound) {
		return err
	}
	if now, lookup := d.made.Made(ctx, idempotency.Of(ctx)); lookup == nil && now == nil {
		return errEarlierFailed
	}
	return idempotency.Gone(strings.Join(made, ", "))
}

// carryKey puts the request's Idempotency-Key into its context. The hash is of method,
// path and body, in which the order of fields and white space do not matter. How long
// the client waits, in the query, may differ.
func (d *door) carryKey(hc huma.Context, next func(huma.Context)) {
	key := hc.Header(idempotency.Field)
	if key == "" {
		next(hc)
		return
	}
	r, w := humago.Unwrap(hc)
	if len(key) > idempotency.MaxKey || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		d.writeProblem(w, r, errs.New(errs.Invalid, "invalid_idempotency_key",
			"%s: want 1 to %d visible ASCII characters", idempotency.Field, idempotency.MaxKey).WithField(idempotency.Field))
		return
	}
	body, err := io.ReadAll(r.Body) // from memory: see readBody
	if err != nil {
		d.writeProblem(w, r, err)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	hash := sha256.Sum256([]byte(r.Method + " " + r.URL.EscapedPath() + "\n" + string(sortedJSON(body))))
	next(huma.WithContext(hc, idempotency.With(hc.Context(), idempotency.Request{
		Owner: owner(hc.Context()), Key: key, Hash: hex.EncodeToString(hash[:]),
	})))
}

// sortedJSON returns JSON with the fields of each object in the order of their names.
// An empty body is an empty object; other text is refused later, and returned as it is.
func sortedJSON(text []byte) []byte {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var plain any
	if len(bytes.TrimSpace(text)) == 0 {
		plain = map[string]any{}
	} else if decoder.Decode(&plain) != nil {
		return text
	}
	sorted, err := json.Marshal(plain)
	if err != nil {
		return text
	}
	return sorted
}

// replayed returns what replays an answer with one object, of which current returns what
// it is now.
func replayed[I, T any](collection string, current func(ctx context.Context, id string) (T, error)) func(context.Context, *I, []string) (*created[T], error) {
	return func(ctx context.Context, _ *I, made []string) (*created[T], error) {
		body, err := current(ctx, made[0])
		if err != nil {
			return nil, err
		}
		return &created[T]{Location: collection + made[0], Body: body}, nil
	}
}

// byID is a handler that returns one object, as a function of the object's id.
func byID[T any](get func(context.Context, *IDPath) (*answer[T], error)) func(context.Context, string) (T, error) {
	return func(ctx context.Context, id string) (body T, err error) {
		out, err := get(ctx, &IDPath{ID: id})
		if err != nil {
			return body, err
		}
		return out.Body, nil
	}
}

// byIDAlone is byID for a handler that obeys conditions: there are none.
func byIDAlone[T any](get func(context.Context, *ConditionalIDPath) (*tagged[T], error)) func(context.Context, string) (T, error) {
	return byID(func(ctx context.Context, in *IDPath) (*answer[T], error) {
		out, err := get(ctx, &ConditionalIDPath{IDPath: *in})
		if err != nil {
			return nil, err
		}
		return &answer[T]{Body: out.Body}, nil
	})
}
