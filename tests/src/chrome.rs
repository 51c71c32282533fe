//! Headless Chromium, driven through its DevTools protocol over two named pipes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A browser with one page.
pub struct Chrome {
    child: Child,
    commands: File,
    replies: BufReader<File>,
    session: Option<String>,
    n_sent: u64,
    /// Everything that the page and the browser reported.
    pub events: Vec<Value>,
    _folder: TempDir,
}

impl Chrome {
    /// Starts `program`; what the page logs and asks for is recorded from here on.
    pub fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [inward, outward] = ["in", "out"].map(|name| folder.path().join(name));
        crate::succeed(Command::new("mkfifo").arg(&inward).arg(&outward));
        // The protocol is spoken on descriptors 3 and 4.
        let mut child = Command::new("sh");
        child
            .args(["-c", "exec \"$0\" \"$@\" 3<\"$PIPE_IN\" 4>\"$PIPE_OUT\""])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .arg("about:blank")
            .env("PIPE_IN", &inward)
            .env("PIPE_OUT", &outward)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = child.spawn().unwrap();
        let commands = File::options().write(true).open(&inward).unwrap();
        let replies = BufReader::new(File::open(&outward).unwrap());
        let mut chrome =
            Self { child, commands, replies, session: None, n_sent: 0, events: Vec::new(), _folder: folder };
        let targets = chrome.call("Target.getTargets", json!({}));
        let page = targets["targetInfos"].as_array().unwrap().iter().find(|t| t["type"] == "page").unwrap();
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = chrome.call("Target.attachToTarget", attach);
        chrome.session = session["sessionId"].as_str().map(String::from);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            chrome.call(&format!("{domain}.enable"), json!({}));
        }
        chrome
    }

    /// Sends one command and waits for its answer.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.n_sent += 1;
        let mut message = json!({ "id": self.n_sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        loop {
            let mut bytes = Vec::new();
            self.replies.read_until(0, &mut bytes).unwrap();
            assert!(bytes.pop().is_some(), "the browser closed its pipe during {method}");
            let mut message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["id"] == self.n_sent {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// Opens a file and waits until it has loaded.
    pub fn open(&mut self, page: &Path) {
        self.call("Page.navigate", json!({ "url": format!("file://{}", page.display()) }));
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))");
    }

    /// Evaluates a script in the page, awaits it and returns its value.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{script}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Evaluates a script whose value is text.
    #[track_caller]
    pub fn text(&mut self, script: &str) -> String {
        let value = self.run(script);
        value.as_str().unwrap_or_else(|| panic!("{script}: {value} is no text")).to_owned()
    }

    /// Presses and releases a key, by its name.
    pub fn press(&mut self, key: &str) {
        let text = if key.len() == 1 { json!(key) } else { Value::Null };
        let mut down = json!({ "type": "keyDown", "key": key });
        if !text.is_null() {
            down["text"] = text;
        }
        self.call("Input.dispatchKeyEvent", down);
        self.call("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": key }));
    }

    /// Sets the width of the window in pixels and the colour scheme.
    pub fn view(&mut self, width: u32, scheme: &str) {
        let size = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// A screenshot of the window as base64 PNG.
    pub fn photograph(&mut self) -> String {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        picture["data"].as_str().unwrap().to_owned()
    }

    /// Events of one kind.
    pub fn heard(&self, method: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["method"] == method).collect()
    }
}

impl Drop for Chrome {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
