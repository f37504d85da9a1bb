package mesh.apps.spring;

import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import mesh.apps.ShopBase;
import org.springframework.web.context.request.RequestContextHolder;
import org.springframework.web.context.request.ServletRequestAttributes;

/** The shop behind the controller. */
final class Service extends ShopBase {
    Service(String label) {
        super(label);
    }

    @Override
    public Map<String, String> headers() {
        ServletRequestAttributes current = (ServletRequestAttributes) RequestContextHolder.currentRequestAttributes();
        HttpServletRequest request = current.getRequest();
        HttpServletResponse response = current.getResponse();
        Map<String, String> received = new HashMap<>();
        for (String name : Collections.list(request.getHeaderNames())) {
            if (name.toLowerCase().startsWith("x-")) {
                received.put(name.toLowerCase(), request.getHeader(name));
            }
        }
        response.setHeader("x-reply", "done");
        response.setHeader("x-reply-user", received.get("x-user"));
        return received;
    }
}
