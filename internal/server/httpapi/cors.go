package httpapi

import (
	"net/http"

	"github.com/rs/cors"
)

// allowOrigins lets pages of the configured origins call the API, with a key that they
// have of their own: a browser sends no credentials by itself. It answers preflight
// requests, which have no key.
func allowOrigins(origins []string, next http.Handler) http.Handler {
	if len(origins) == 0 {
		return next
	}
	const maxAge = 600 // seconds
	return cors.New(cors.Options{
		AllowedOrigins:   origins,
		AllowedMethods:   []string{get, http.MethodHead, post, put, patch, del},
		AllowedHeaders:   []string{"*"},
		ExposedHeaders:   []string{"*", "ETag", "Link", "Location", "Retry-After", "X-Request-Id"},
		AllowCredentials: false,
		MaxAge:           maxAge,
	}).Handler(next)
}
