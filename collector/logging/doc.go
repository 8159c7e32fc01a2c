// Package logging bounds the log: clients and tenants cannot fill it, and its reader keeps nobody waiting.
package logging
