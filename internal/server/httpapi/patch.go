package httpapi

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// mergePatchType is the media type of RFC 7396. A PATCH in application/json means the
// same.
const mergePatchType = "application/merge-patch+json"

// Patch is a body that changes an object. It is exported for huma.
type Patch struct {
	Conditions
	RawBody []byte `contentType:"application/json"`
}

// patches describes a body of type T that changes an object. patched checks it: which
// values are valid follows from the object, too.
func patches[T any](add register) register {
	return func(d *door, described huma.API, op huma.Operation) {
		op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{}}
		op.SkipValidateBody = true
		add(d, described, op)
		media := &huma.MediaType{Schema: d.schemas.Schema(reflect.TypeFor[T](), true, "")}
		op.RequestBody.Content["application/json"], op.RequestBody.Content[mergePatchType] = media, media
	}
}

// patched returns an object as a merge patch changes it: fields that are absent stay,
// null removes one. Only the fields in may can change; a patch may repeat the others,
// so that a client can send back what it has read. fixed says why some cannot change.
// Only values that change are compared with P, the patch's schema: the others may be
// older than it.
func patched[P, T any](d *door, shown T, patch []byte, may []string, fixed map[string]string) (T, error) {
	var after T
	var before, change any
	text, err := json.Marshal(shown)
	if err == nil {
		err = json.Unmarshal(text, &before)
	}
	if err != nil {
		return after, err
	}
	if err := jsonFormat.Unmarshal(patch, &change); err != nil {
		return after, refusedBody(&huma.ErrorDetail{Location: "body", Message: err.Error()})
	}
	fields, ok := change.(map[string]any)
	if !ok {
		return after, refusedBody(&huma.ErrorDetail{Location: "body", Message: "expected object"})
	}
	merged, _ := merge(before, change).(map[string]any)
	known := d.schemas.Map()[reflect.TypeFor[T]().Name()].Properties
	valid := d.schemas.Map()[reflect.TypeFor[P]().Name()].Properties
	var refused []error
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		was, now := before.(map[string]any)[name], merged[name]
		switch {
		case known[name] != nil && reflect.DeepEqual(was, now):
		case slices.Contains(may, name):
			if now != nil {
				var result huma.ValidateResult
				huma.Validate(d.schemas, valid[name], huma.NewPathBuffer([]byte("body."+name), len("body."+name)), huma.ModeWriteToServer, now, &result)
				refused = append(refused, result.Errors...)
			}
		case fixed[name] != "":
			refused = append(refused, &huma.ErrorDetail{Location: "body." + name, Message: "cannot be changed: " + fixed[name]})
		case known[name] != nil:
			refused = append(refused, &huma.ErrorDetail{Location: "body." + name, Message: "cannot be changed"})
		default:
			refused = append(refused, &huma.ErrorDetail{Location: "body." + name, Message: unknownField})
		}
	}
	if len(refused) > 0 {
		return after, refusedBody(refused...)
	}
	if text, err = json.Marshal(merged); err != nil {
		return after, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields() // of objects within
	if err := decoder.Decode(&after); err != nil {
		return after, refusedBody(&huma.ErrorDetail{Location: "body", Message: decodeError(err).Error()})
	}
	return after, nil
}

func refusedBody(found ...error) error { return &invalidBody{found} }

// merge applies a merge patch of RFC 7396, and changes neither of its arguments.
func merge(target, patch any) any {
	fields, isObject := patch.(map[string]any)
	if !isObject {
		return patch
	}
	of, _ := target.(map[string]any)
	merged := make(map[string]any, len(of)+len(fields))
	maps.Copy(merged, of)
	for name, value := range fields {
		if value == nil {
			delete(merged, name)
		} else {
			merged[name] = merge(merged[name], value)
		}
	}
	return merged
}
