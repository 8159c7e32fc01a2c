// Package web serves the metrics and the status page. Requests at the same time share one scan, and no client keeps
// others waiting.
package web
