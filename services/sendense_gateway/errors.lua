-- Gives errors that services report the shape of all errors: {"code","reason","message","help","details"}.
--
-- The transcoder writes google.rpc.Status: {"code":5,"message":"…","details":[{"@type":"…ErrorInfo","reason":"…",…},…]}.
-- Strings are copied as they stand, still escaped, so nothing is decoded or encoded here. Inside a JSON string each quote
-- has a backslash before it; so `"key":"` is never found inside a message, only where it is a key.

-- For a status without ErrorInfo, which gRPC itself made.
local REASONS = {
  ["1"] = "CANCELLED", ["3"] = "INVALID_ARGUMENT", ["4"] = "DEADLINE_EXCEEDED", ["5"] = "NOT_FOUND",
  ["8"] = "RESOURCE_EXHAUSTED", ["12"] = "UNIMPLEMENTED", ["14"] = "SERVICE_UNAVAILABLE",
  ["16"] = "UNAUTHENTICATED",
}

-- Returns the raw content of the first string that stands after `"key":`.
local function string_after(text, key)
  local _, start = text:find('"' .. key .. '":"', 1, true)
  if not start then
    return ""
  end
  local at = start + 1
  while true do
    local found = text:find('["\\]', at)
    if not found then
      return ""
    end
    if text:sub(found, found) == '"' then
      return text:sub(start + 1, found - 1)
    end
    at = found + 2
  end
end

-- A path of a guest's file has 4096 bytes at most, each written as %XX.
local LONGEST_PATH = 14000

function envoy_on_request(handle)
  if #handle:headers():get(":path") > LONGEST_PATH then
    handle:respond(
      {[":status"] = "414", ["content-type"] = "application/json"},
      '{"code":3,"reason":"PATH_TOO_LONG","message":"the path is longer than 14000 bytes",' ..
      '"help":"Paths of files have at most 4096 bytes, identifiers at most 1024.","details":[]}')
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if tonumber(headers:get(":status")) < 400 or headers:get("content-type") ~= "application/json" then
    return
  end
  local body = handle:body()
  if not body then
    return
  end
  -- While the body was waited for, the object from before became invalid.
  headers = handle:headers()
  local text = body:getBytes(0, body:length())
  local code = text:match('^{"code":(%d+),"message":')
  if not code then
    return
  end
  local message = string_after(text, "message")
  local reason = string_after(text, "reason")
  local help = string_after(text, "description")
  local _, details_at = text:find('"details":', 1, true)
  local details = details_at and text:sub(details_at + 1, -2) or "[]"
  if reason == "" then
    reason = REASONS[code] or "INTERNAL"
    -- What the transcoder let through and the service could not read, such as a string that is no UTF-8.
    if code == "13" and message:find("deserializing request", 1, true) then
      code, reason, message = "3", "MALFORMED_BODY", "the request cannot be read"
      help = "Send JSON in UTF-8 as the API reference shows it."
      headers:replace(":status", "400")
    end
  end
  local shaped = string.format(
    '{"code":%s,"reason":"%s","message":"%s","help":"%s","details":%s}', code, reason, message, help, details)
  headers:replace("content-length", tostring(body:setBytes(shaped)))
end
